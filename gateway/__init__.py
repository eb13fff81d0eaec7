"""The gateway: one chat request, from the client's socket to its spans.

    proxy.Completions                    raw ASGI, so that leaving while queued is noticed
      completion.parse                   bytes -> what the scheduler must know; else BadRequest
      callers.identify                   whose turn it takes
      estimator.price                    prompt bytes -> tokens -> prefill seconds
      Job                                flow, lane, tokens, cost, seats
      tracing.start                      SERVER span, traceparent in
      disconnect watcher                 for the request's whole life
        waiting.admitted(job)            Admission.arrive -> Policy -> dispatch -> wake-up
          upstream.stream                traceparent out
            first token                  Admission.first_token: prefill permit back, next one goes
            relay                        bytes untouched
        exit of admitted, no await       Admission.finish: seat back exactly once, charge settled
      estimator.learn                    bytes per token, from usage
    telemetry.finish                     spans queue | prefill | decode, one log line, metrics

`Admission` and everything below it is pure: it is told what happened and answers what to do. The simulator in
`loadtest` drives the very same objects under a virtual clock.
"""
