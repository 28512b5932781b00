"""Runs the SQL that it is sent and answers with JSON rows. The microVM is its sender's own, and so is the database."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer

import psycopg2

STATEMENT_BYTES_MAX = 1 << 16


class Gate(BaseHTTPRequestHandler):
    def do_POST(self):
        length = min(int(self.headers.get("content-length", 0)), STATEMENT_BYTES_MAX)
        statement = self.rfile.read(length).decode()
        try:
            with psycopg2.connect("dbname=postgres") as connection, connection.cursor() as cursor:
                cursor.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
            self.answer(200, rows)
        except psycopg2.Error as error:
            self.answer(400, {"error": str(error).strip()})

    def answer(self, status, content):
        body = json.dumps(content, default=str).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


HTTPServer(("0.0.0.0", 8080), Gate).serve_forever()
