#!/usr/bin/python3
"""echo.py PORT: socketserver.ForkingTCPServer with an echo, and every limit out of the way."""
import socketserver
import sys


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096):
            self.request.sendall(data)


class Server(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    request_queue_size = 4096
    max_children = 1000


Server(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
