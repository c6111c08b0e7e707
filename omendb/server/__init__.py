"""The HTTP server: granian outside, one set of handlers inside, and statuses nowhere else.

Read it in this order: `serve` (the process), `embedding` and `app` (the ways in), `routes`, `handlers`,
then what they use: `body` and `wire` (requests), `encode` and `stream` (answers), `problems` (errors).
"""
