"""The life of one request, from its price to its settlement, as both clocks drive it. Pure.

core        what decides: prices, admission, the engine's speed, slices; the gateway has one, each simulation another
lifecycle   one request: told what happened, it applies the events to admission and answers what to do
settlement  what a request came to: its charge, and what was observed of it
"""
