import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api.metrics import Metrics
from app.engine import FIGURES


def samples(client) -> dict[tuple, float]:
    """Every sample that Prometheus would read, by its name and its labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def of(name: str, method: str, route: str, status: int) -> tuple:
    return (name, ("method", method), ("route", route), ("status", str(status)))


def test_requests_are_counted_and_timed_by_method_template_and_status(client, session_url):
    client.get(session_url)
    client.get(session_url)
    client.head(session_url)
    client.get("/v1/sessions/none")
    found = samples(client)
    template = "/v1/sessions/{session_id}"
    assert found[of("innerloop_http_requests_total", "GET", template, 200)] == 2
    assert found[of("innerloop_http_requests_total", "HEAD", template, 200)] == 1
    assert found[of("innerloop_http_requests_total", "GET", template, 404)] == 1
    assert found[of("innerloop_http_requests_total", "POST", "/v1/sessions", 201)] == 1
    assert found[of("innerloop_http_request_duration_seconds_count", "GET", template, 200)] == 2
    assert 0 < found[of("innerloop_http_request_duration_seconds_sum", "GET", template, 200)] < 60


def test_what_callers_think_up_makes_no_new_figures(client):
    for name in ("a", "b", "c"):
        client.get(f"/{name}")
        client.request(name.upper() * 5, "/v1/sessions")
    found = samples(client)
    assert found[of("innerloop_http_requests_total", "GET", "unmatched", 404)] == 3
    assert found[of("innerloop_http_requests_total", "other", "/v1/sessions", 405)] == 3


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/metrics", "/health/live", "/"])
def test_pages_are_counted_by_their_path(client, path):
    client.get(path, follow_redirects=False)
    counted = {key: value for key, value in samples(client).items() if ("route", path) in key}
    assert sum(counted.values()) > 0


def test_the_engine_and_the_process_are_measured_too(client):
    found = samples(client)
    assert found[("innerloop_engine_queue_length",)] == 3
    assert found[("innerloop_engine_batches_total",)] == 7
    assert found[("innerloop_http_requests_in_flight",)] == 0
    assert found[("process_open_fds",)] > 0


def test_every_figure_says_in_words_what_it_is(client):
    client.get("/health/live")
    families = text_string_to_metric_families(client.get("/metrics").text)
    words = {family.name: family.documentation for family in families}
    assert words["innerloop_engine_queue_length"] == FIGURES["queue_length"]
    assert words["innerloop_engine_batches"] == FIGURES["batches_total"]
    assert words["innerloop_http_requests_in_flight"] == "Requests that are not answered yet."
    assert not [name for name in words if name.endswith("_created")]


def test_two_servers_in_one_process_share_no_figures():
    one, other = Metrics(), Metrics()
    one.count("GET", "/", 200, 0.1)
    assert b'innerloop_http_requests_total{method="GET"' in one.text()
    assert b'innerloop_http_requests_total{method="GET"' not in other.text()
