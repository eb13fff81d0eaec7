"""The answer to a request that no endpoint answers: an unknown path, a wrong method, a bug outside of an endpoint."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from gateway.api.routes import PASSED, QUEUED, REFUSED, error_format
from gateway.errors import GatewayError, InternalError, MethodNotAllowed, NotFound
from gateway.proxy import status


async def _gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    response = Response(error_format(request.url.path).body(error), error.status, media_type="application/json")
    response.raw_headers.extend(error.headers())
    return response


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette raises these for what its router does not know."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        response = await _gateway_error(request, MethodNotAllowed(f"{path} does not take {request.method}."))
        response.headers.update(error.headers or {})  # which methods it takes
        return response
    routes = ", ".join([*dict.fromkeys(route.path for route in (*QUEUED, *PASSED)), *status.PATHS])
    return await _gateway_error(request, NotFound(REFUSED.get(path) or f"There is no {path} here. There is: {routes}."))


async def _bug(request: Request, error: Exception) -> Response:
    return await _gateway_error(request, InternalError("The gateway failed; its log has the reason."))


EXCEPTION_HANDLERS: dict[type[Exception] | int, ExceptionHandler] = {
    GatewayError: _gateway_error,
    HTTPException: _http_error,
    Exception: _bug,
}
