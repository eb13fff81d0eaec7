"""The life of one request, from its price to its settlement, as both clocks drive it. Pure.

core          everything that decides: prices, admission, the engine's speed, slices; the gateway has one of it, and
              each simulation one of its own
lifecycle     one request: told what happened, it applies the events to admission and answers what to do
slice_review  whether a slice found in the engine's cache what those before it had done
settlement    what a request came to: its charge, and what was observed of it
"""
