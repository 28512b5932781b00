"""A small JSON service with Flask."""

from flask import Flask, jsonify, request

app = Flask(__name__)


@app.get("/")
def hello():
    return jsonify(message=f"Hello, {request.args.get('name', 'world')}!")
