"""Attribute names, in one place.

HTTP: the stable OpenTelemetry conventions. `gen_ai.*`: the GenAI conventions, still in development (1.41), kept
here so that a rename is one line. `fairlane.*`: our own, for what no convention covers.
"""

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"

REQUEST_ID = "fairlane.request.id"
USER = "fairlane.user"  # hashed
LANE = "fairlane.lane"
SEATS = "fairlane.seats"
PREDICTED_TOKENS = "fairlane.predicted.input_tokens"
PREDICTED_CACHED = "fairlane.predicted.cached_tokens"
PREDICTED_COST = "fairlane.predicted.prefill_s"
TRUE_COST = "fairlane.true.prefill_s"  # the curve at true counts
OBSERVED_PREFILL = "fairlane.observed.prefill_s"  # a sample of the curve: what nobody else's work was in
CHARGED = "fairlane.charged_s"
COUNTED = "fairlane.counted"  # the tokens were counted, not estimated
RETRIED = "fairlane.asked_again"  # the engine was away, or its connection broke
SLICES = "fairlane.slices"  # that were done before the request itself was sent
SLICE_START = "fairlane.slice.start"  # in tokens of the prompt
SLICE_END = "fairlane.slice.end"
OUTCOME = "fairlane.outcome"
TIMING_SOURCE = "fairlane.timing.source"  # observed | predicted | answer
