"""One line each for web frameworks: the route and the request id of a block or a leak.

``asgi.LoopwatchMiddleware`` for Starlette, FastAPI and every other ASGI application, ``aiohttp.setup`` for aiohttp's
server.  They change nothing of requests or answers.
"""
