"""The gateway: one chat request, from the client's socket to its spans.

    proxy.Completions                    raw ASGI, so that leaving while queued is noticed
      completion.parse                   bytes -> what the scheduler must know; else BadRequest
      callers.identify                   whose turn it takes
      background.takes                   is it served last
      cost.predict                       prompt bytes -> tokens -> prefill seconds
      Job                                flow, lane, tokens, cost, seats, cache, wishes
      watchers                           has the client left, does it still read: for the request's whole life
        waiting.admitted(job)            refused, or: Event("arrive") -> Admission -> Line, Ledger -> wake-up
          upstream.post                  traceparent out
            first token                  Event("first_token"): prefill permit back, next one goes
            relay                        bytes untouched; now and then Event("progress")
        exit of admitted, no await       Event("finish"): seats and cache back exactly once, charge settled
      cost.learn                         bytes per token, from usage
    telemetry.finish                     spans queue | prefill | decode, one log line, metrics

`Admission` and everything below it is pure: it is told what happened and answers what to do. `Forecaster` hears the
same events and knows what will happen. The simulator in `loadtest` drives the very same objects under a virtual clock.
"""
