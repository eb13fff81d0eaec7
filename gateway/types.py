"""Types that several rooms share."""

# HTTP header fields as ASGI has them: names in lower case.
Headers = list[tuple[bytes, bytes]]
