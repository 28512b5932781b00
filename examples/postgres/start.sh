#!/bin/sh
# The server in the background, and in front of it a gate that speaks HTTP.
set -e
pg_ctl start --wait --log=/tmp/postgres.log
exec python3 /srv/query.py
