"""A bucket of Google Cloud Storage on this machine: as much of its JSON API as its clients ask for.

https://cloud.google.com/storage/docs/json_api. Whoever runs with `Bucket.environment()` reaches it:
gcsfs, google-cloud-storage and TensorStore. An object appears whole, once all of it has come.
"""

import http.server
import json
import re
import threading
import urllib.parse

_PATH = re.compile(
    r"(?:/upload|/download)?/storage/v1/b/([^/]+)(/o)?(?:/([^/]+))?"
    r"(?:/(?:moveTo|rewriteTo/b/[^/]+)/o/([^/]+))?"
)


class Bucket(http.server.ThreadingHTTPServer):
    """Serves from a thread of its own, between `with` and its end."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.objects = {}  # {key: (generation, content)}
        self.asked = []  # [(method, path and query)]
        self.uploads = []  # [key, condition, what has come] of those in parts
        self.lock = threading.RLock()
        self.written = 0
        self.withheld = None  # a key that nobody can write, until this is None again
        self.reached = threading.Event()  # once somebody has tried to

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    def handle_error(self, *_):
        """A client may leave before it has its answer: gcsfs asks twice and takes the first."""

    def environment(self):
        url = f"http://127.0.0.1:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask for its kind by gRPC
        }

    def put(self, key, content, condition=None):
        """Whether it was written: condition is the generation that must be there, 0 for none."""
        with self.lock:
            held = self.objects.get(key, (0, b""))[0]
            if condition is not None and int(condition) != held:
                return False
            self.written += 1
            self.objects[key] = self.written, content
            return True

    def names(self, folder):
        """What lies in a folder of it."""
        with self.lock:
            keys = [key.removeprefix(folder) for key in self.objects if key.startswith(folder)]
        return {key.split("/")[0] for key in keys}

    def copy_to(self, folder):
        """Writes all its objects as files."""
        for key, (_, content) in self.objects.items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        if isinstance(content, dict):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status, message):
        self.answer(status, {"error": {"code": status, "message": message}})

    def facts(self, key):
        generation, content = self.server.objects[key]
        when = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object", "bucket": self.server.name, "name": key,
            "generation": str(generation), "metageneration": "1", "size": str(len(content)),
            "timeCreated": when, "updated": when, "contentType": "application/octet-stream",
        }  # fmt: skip

    def serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.server.asked.append((self.command, self.path))
        match = _PATH.fullmatch(url.path)
        if match is None:
            return self.refuse(404, f"{self.command} {self.path} is not known here")
        bucket, objects, *keys = match.groups()
        key, target = (one and urllib.parse.unquote(one) for one in keys)
        if bucket != self.server.name:
            return self.refuse(404, f"The specified bucket {bucket} does not exist.")
        with self.server.lock:
            if self.path.startswith("/upload"):
                return self.upload(query, body)
            if objects is None:
                return self.answer(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})
            if key is None:
                return self.list(query.get("prefix", ""), query.get("delimiter"))
            if key not in self.server.objects:
                return self.refuse(404, f"No such object: {bucket}/{key}")
            if target is not None:
                self.server.put(target, self.server.objects[key][1])
                if "/moveTo/" in url.path:
                    del self.server.objects[key]
                    return self.answer(200, self.facts(target))
                return self.answer(200, {"done": True, "resource": self.facts(target)})
            if self.command == "DELETE":
                del self.server.objects[key]
                return self.answer(204)
            if query.get("alt") == "media":
                return self.read(key)
            return self.answer(200, self.facts(key))

    do_GET = do_POST = do_PUT = do_DELETE = serve

    def list(self, prefix, delimiter):
        """All of it as one page."""
        items, prefixes = [], set()
        for key in sorted(self.server.objects):
            if key.startswith(prefix):
                head, found, _ = key[len(prefix) :].partition(delimiter or "\0")
                if found:
                    prefixes.add(prefix + head + found)
                else:
                    items.append(self.facts(key))
        self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def read(self, key):
        generation, content = self.server.objects[key]
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(200, content, x_goog_generation=generation)
        first, last = (int(one) if one else None for one in asked.groups())
        if first is None:
            first, last = max(0, len(content) - last), None
        if first >= len(content):
            return self.refuse(416, "The requested range cannot be satisfied.")
        part = content[first : None if last is None else last + 1]
        where = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return self.answer(206, part, Content_Range=where, x_goog_generation=generation)

    def upload(self, query, body):
        condition = query.get("ifGenerationMatch")
        if "upload_id" in query:
            return self.upload_part(int(query["upload_id"]), body)
        if query["uploadType"] == "resumable":
            key = query.get("name") or json.loads(body)["name"]
            self.server.uploads.append([key, condition, b""])
            place = f"http://{self.headers['Host']}{self.path}"
            return self.answer(200, Location=f"{place}&upload_id={len(self.server.uploads) - 1}")
        if query["uploadType"] == "media":
            return self.keep(query["name"], body, condition)
        edge = b"--" + re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
        _, about, rest = body.split(edge, 2)
        end = b"\r\n" if b"\r\n" in about else b"\n"
        content = rest[rest.index(2 * end) + 2 * len(end) : rest.rindex(edge) - len(end)]
        return self.keep(json.loads(about.partition(2 * end)[2])["name"], content, condition)

    def upload_part(self, index, body):
        upload = self.server.uploads[index]
        upload[2] += body
        if self.headers["Content-Range"].endswith("/*"):
            return self.answer(308, Range=f"bytes=0-{len(upload[2]) - 1}")
        key, condition, content = upload
        return self.keep(key, content, condition)

    def keep(self, key, content, condition):
        if key == self.server.withheld:
            self.server.reached.set()
            return self.refuse(503, "Try again.")
        if not self.server.put(key, content, condition):
            return self.refuse(412, "A pre-condition did not hold.")
        return self.answer(200, self.facts(key))
