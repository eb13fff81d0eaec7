"""Types and bounds that several rooms share."""

# HTTP header fields as ASGI has them: names in lower case.
Headers = list[tuple[bytes, bytes]]

# So many characters at the beginning of a request's last message tell what kind of request it is.
OPENING_CHARS = 200
