"""/metrics of the simulated vLLM, and its queue limits."""

from dataclasses import replace

import pytest

from gateway.scheduling.reconciler import EngineState
from tests.support.simulated_spark import (
    BF16,
    FLAT,
    HTTP,
    chat,
    metric,
    post,
    post_for_json,
    request_in_engine,
    simulated_spark,
)
from tests.support.waiting import wait_until
from tests.support.wire import TEXT


def test_finished_requests_are_counted() -> None:
    with simulated_spark(FLAT, speed=100.0) as url:
        post_for_json(url, {"prompt": [[1] * 30, [1] * 40], "max_tokens": 5}, TEXT)
        post_for_json(url, chat("hi"))
        counts = {
            name: metric(url, name)
            for name in (
                *("prompt_tokens_total", "generation_tokens_total", "num_preemptions_total"),
                *("request_prompt_tokens_sum", "request_generation_tokens_sum", "request_generation_tokens_count"),
                *("time_to_first_token_seconds_count", "inter_token_latency_seconds_count"),
            )
        }
        reasons = [metric(url, "request_success_total", finished_reason=each) for each in ("length", "stop", "abort")]
        times = {
            name: metric(url, f"{name}_seconds_sum")
            for name in (
                *("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"),
                *("time_to_first_token", "inter_token_latency"),
            )
        }
    assert counts == {
        "prompt_tokens_total": 71,
        "generation_tokens_total": 266,
        "num_preemptions_total": 0,
        "request_prompt_tokens_sum": 71,
        "request_generation_tokens_sum": 266,
        "request_generation_tokens_count": 3,
        "time_to_first_token_seconds_count": 3,
        "inter_token_latency_seconds_count": 263,
    }
    assert reasons == [2, 1, 0]
    assert times["request_prefill_time"] == pytest.approx(3 * 0.01)
    assert times["request_decode_time"] == times["inter_token_latency"] == pytest.approx(263 * 0.01)
    assert times["time_to_first_token"] == pytest.approx(times["request_queue_time"] + times["request_prefill_time"])
    assert times["e2e_request_latency"] == pytest.approx(times["time_to_first_token"] + times["request_decode_time"])


def test_a_request_that_leaves_is_not_counted() -> None:
    with simulated_spark(FLAT, speed=50.0) as url:
        with request_in_engine(url):
            wait_until(lambda: metric(url, "generation_tokens_total") > 0)
        wait_until(lambda: metric(url, "num_requests_running") == 0)
        assert metric(url, "request_generation_tokens_count") == 0
        assert metric(url, "request_success_total", finished_reason="abort") == 0


def test_a_token_in_delivery_to_a_client_that_left_is_not_counted() -> None:
    """The engine is done with it after a second; its first token would arrive two seconds later."""
    with simulated_spark(replace(FLAT, to_s=120.0), speed=40.0) as url:
        with request_in_engine(url, tokens=40):
            wait_until(lambda: metric(url, "num_requests_running") == 0)
        post_for_json(url, {"prompt": [1], "max_tokens": 1}, TEXT)
        assert metric(url, "generation_tokens_total") == 1


def test_the_gateway_can_read_the_metrics() -> None:
    profile = FLAT.with_flags(max_num_seqs=1, kv_cache_tokens=1600)
    with (
        simulated_spark(profile, speed=1.0) as url,
        request_in_engine(url, 90, tokens=1000),
        request_in_engine(url, 90, tokens=1000),
    ):
        wait_until(lambda: metric(url, "kv_cache_usage_perc") > 0)
        state = EngineState.read(HTTP.get(f"{url}/metrics").content)
    assert state == EngineState(1, 1, 0.06, 1600, preemptions=0, block=16, caches=False, cache_hits=0)


@pytest.mark.parametrize(
    ("tokens", "config"),
    [
        (1600, {"block_size": "16", "num_gpu_blocks": "100", "kv_cache_size_tokens": "1600"}),
        (None, {"block_size": "16", "num_gpu_blocks": "None", "kv_cache_size_tokens": "None"}),
    ],
)
def test_the_cache_configuration_is_a_metric(tokens: int | None, config: dict[str, str]) -> None:
    with simulated_spark(BF16.with_flags(kv_cache_tokens=tokens, enable_prefix_caching=True)) as url:
        assert metric(url, "cache_config_info", enable_prefix_caching="True", engine="0", **config) == 1
        content_type = HTTP.get(f"{url}/metrics").headers["content-type"]
    assert content_type == "text/plain; version=1.0.0; charset=utf-8"


def test_preemptions_are_counted_and_no_token_is_lost() -> None:
    profile = FLAT.with_flags(kv_cache_tokens=160)
    with simulated_spark(profile, speed=100.0) as url:
        usage = post_for_json(url, {"prompt": [[1] * 60, [1] * 60], "max_tokens": 60}, TEXT)["usage"]
        assert metric(url, "num_preemptions_total") > 0
        assert usage["completion_tokens"] == metric(url, "generation_tokens_total") == 120


# The queue limits


def test_the_request_queue_limit_answers_503() -> None:
    """Those that run count, too; n counts n times, but prompts beyond the first do not."""
    with simulated_spark(FLAT, speed=1.0, max_num_queued_reqs=3) as url, request_in_engine(url, prompts=2):
        for n in (2, 3):
            response = post(url, TEXT, {"prompt": [1], "n": n})
            assert response.status_code == 503
            assert "retry-after" not in response.headers
            assert response.json()["error"] == {
                "message": "The engine is currently busy and cannot accept new requests. "
                "Please try again later or on a different instance.",
                "type": "Service Unavailable",
                "param": None,
                "code": 503,
            }
        with request_in_engine(url, prompts=2):
            assert post(url, TEXT, {"prompt": [1]}).status_code == 503
        assert metric(url, "admission_rejections_total", reason="max_num_queued_reqs") == 3
        assert metric(url, "admission_rejections_total", reason="max_num_queued_tokens") == 0


def test_the_token_queue_limit_answers_503() -> None:
    """Of a prompt all count, until its first token; the one that reaches the limit is still taken."""
    with simulated_spark(FLAT, speed=1.0, max_num_queued_tokens=5000) as url:
        with request_in_engine(url, 4000), request_in_engine(url, 4000):
            response = post(url, TEXT, {"prompt": [1]})
            assert response.status_code == 503
            assert "prefill token backlog" in response.json()["error"]["message"]
            assert metric(url, "admission_rejections_total", reason="max_num_queued_tokens") == 1
        wait_until(lambda: metric(url, "num_requests_running") == 0)
        with request_in_engine(url, 1):
            pass


def test_a_first_token_removes_its_prompt_from_the_backlog() -> None:
    with simulated_spark(FLAT, speed=10.0, max_num_queued_tokens=100) as url, request_in_engine(url, 5000):
        assert post(url, TEXT, {"prompt": [1]}).status_code == 503
        wait_until(lambda: metric(url, "generation_tokens_total") > 0)
        assert post(url, TEXT, {"prompt": [1], "max_tokens": 1}).status_code == 200


def test_the_load_endpoint_counts_requests() -> None:
    with simulated_spark(FLAT, speed=1.0) as url, request_in_engine(url, prompts=2), request_in_engine(url):
        assert HTTP.get(f"{url}/load").json() == {"server_load": 2}
