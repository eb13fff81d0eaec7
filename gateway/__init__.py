"""The gateway: one request, from the client's socket to its spans. `docs/architecture.md` has the long version.

    server.connection                   uvicorn parses HTTP; connections, head size and head time are limited
    app, api.routes                     the allow-list: the path is queued, passed through, answered here, or refused
    proxy.inference.InferenceEndpoint   raw ASGI, so that a client that leaves while it is queued is noticed
      proxy.reception.read
        identity.callers                who asks: a key, a front end's user, an address; else UnknownKey
        client_connection.body          the whole body, within its limits of bytes and time
        api: parse                      bytes -> model, prompts, answers wanted; else BadRequest
      client_connection.watch_...       has the client left, does it still read: watched until the request ends
      proxy.reception.price
        pricing.cost_model.price        known prefix, bytes -> tokens, cached tokens -> seconds of prefill
        tokenizers                      exact tokens, where a lane or the context limit depends on them; token ids,
                                        where the prompt may be sliced
        lifecycle.core.plan             where a long prompt is cut into slices
        Job, Lifecycle                  what the scheduler sees of the request; what leads it from here to its end
      proxy.dispatcher.serve
        keepalive.send                  comments for a stream that waits, until its answer begins
        waiting_room.admitted           rejected, or `Arrived` -> Admission (JobQueue, Ledger) -> wait -> dispatched
          sliced_prefill.run            all slices but the last; after each a pause, then `SliceDone` gives back lane
                                        and seats, and a new wait begins
          engine.client.send            the client's own request; traceparent out; waits for an engine that is away
          relay                         the answer, byte for byte: `FirstToken` frees the lane, `Progressed` charges
          lifecycle.settle              the charge, from the token counts that the engine states
        leaving `admitted`, no await    `Finished` gives back all that the job holds; a job that was never dispatched
                                        holds nothing, and `Left` takes it out of the queue
        lifecycle.learn                 tokens, cached tokens and the prefill curve are corrected
    telemetry.hub.finish                spans tokenize | queue | prefill (slices) | decode; metrics; one log line

`pricing`, `scheduling`, `forecasting`, `slicing` and `lifecycle` decide, and they are pure: they are told what
happened, with the time, and answer what to do. `loadtest.simulation` drives the same objects on a virtual clock.
`engine.monitor` finds out which engine answers, reads its metrics, and keeps what was learned for the next start.
"""
