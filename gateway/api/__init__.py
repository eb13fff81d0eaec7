"""The engine's APIs, one file each: how a request is read, what a stream tells as it goes by, what errors look like.

    chat           /v1/chat/completions
    completions    /v1/completions
    responses      /v1/responses
    messages       /v1/messages, Anthropic's
    pooling        embeddings, scores, classes: a prompt, and no words for an answer
    audio          /v1/audio/..., whose body is a form

    base           what they have in common: InferenceRequest, AnswerEvent, Api
    conversation   messages into a prompt
    openai         options, events and usage as both of OpenAI's older APIs write them
    errors         our own errors, in the shape of each

All of it is pure. `gateway.api.routes` says which path is which API's.
"""
