"""The gateway: one request, from the client's socket to its spans.

    routes                               the allow-list: queued by which API, or passed on at once (passed_on)
    proxy.Proxied                        raw ASGI, so that leaving while queued is noticed
      api.parse                          bytes -> what the scheduler must know; else BadRequest
      callers.identify                   whose turn it takes
      background.takes                   is it served last
      cost.price                         known beginning, bytes -> tokens, cached ones -> prefill seconds
      tokenizer                          exact tokens, where a lane or the context limit depends on them; the ids of
                                         a long prompt, if it may be cut
      Job                                flow, lane, tokens, cost, seats, cache, wishes
      slicer.Slices                      where a long prompt is cut, if it is
      watchers                           has the client left, does it still read: for the request's whole life
        comments.keep_company            a streamed one that waits is told so, until its answer begins
        waiting.admitted(job)            refused, or: Event("arrive") -> Admission -> Line, Ledger -> wake-up
          sliced.run                     of a long prompt all slices but the last, each a request of its own; between
                                         two a pause, and Event("slice_done"): others go, then the next one
          upstream.send                  traceparent out; waits for an engine that is away, tries once more
            first token                  Event("first_token"): prefill permit back, next one goes
            relay                        bytes untouched, events as the API reads them; now and then Event("progress")
        exit of admitted, no await       Event("finish"): seats and cache back exactly once, charge settled
      cost.learn                         bytes per token, what was cached, and the curve, from usage and times
    telemetry.finish                     spans queue | prefill (slices) | decode, one log line, metrics

`engine` finds out which engine that is, reads its metrics, and keeps what was learned of it. `Admission` and
everything below it is pure: it is told what happened and answers what to do. `Forecaster` hears the same events and
knows what will happen. The simulator in `loadtest` drives the very same objects under a virtual clock.
"""
