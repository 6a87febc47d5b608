"""What a ``Monitor`` knows, for the tools that operators have.  Each needs its own library, an optional extra.

``prometheus``: a Collector for ``prometheus_client``.  ``otel``: instruments of OpenTelemetry's metrics API.
"""
