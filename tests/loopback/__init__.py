"""Google Cloud on loopback: stand-ins on free ports that Google's own clients and the provider talk to, unmodified.

What they prove is our own side: wiring, the form of requests, deferral, what a job runs. Nothing of Google's own
semantics, quotas or permissions.
"""
