"""Remote shards over a real HTTP server: fetched whole, once a node, checked, bounded; and what is refused."""

import multiprocessing
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from viewshards.cache import ShardCache, is_remote
from viewshards.datamodule import ShardDataModule
from viewshards.views import SimCLR


@pytest.fixture
def server(digits):
    """Serves the digits; counts requests; the first answers for `.tar` files listed in `cut` end early."""
    counts: dict[str, int] = {}
    cut: set[str] = set()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(digits))

        def do_GET(self):
            name = self.path.strip("/")
            counts[name] = counts.get(name, 0) + 1
            if name in cut:
                cut.remove(name)
                data = (digits / name).read_bytes()[:1000]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return
            super().do_GET()

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    http.counts, http.cut = counts, cut
    http.url = f"http://127.0.0.1:{http.server_port}"
    yield http
    http.shutdown()


def test_training_from_a_url_equals_training_from_the_folder(server, digits, tmp_path):
    options = {"global_batch_size": 64, "views": SimCLR(8), "workers": 0}
    local = ShardDataModule(str(digits), **options)
    remote = ShardDataModule(server.url, cache_dir=str(tmp_path), **options)
    a, b = (next(iter(data.train_dataloader())) for data in (local, remote))
    assert a["key"] == b["key"] and (a["image"][0] == b["image"][0]).all()
    with pytest.raises(ValueError, match="need a node-local cache_dir"):
        ShardDataModule(server.url, **options).train_dataloader()


def test_a_download_that_ends_early_is_tried_again(server, digits, tmp_path):
    tar = next(digits.glob("*.tar"))
    server.cut.add(tar.name)
    path = ShardCache(tmp_path).fetch(f"{server.url}/{tar.name}", tar.stat().st_size)
    assert path.read_bytes() == tar.read_bytes()
    assert server.counts[tar.name] >= 2
    with pytest.raises(OSError, match=r"not fetched whole in 4 tries: got .* bytes, expected 1"):
        ShardCache(tmp_path / "other").fetch(f"{server.url}/{tar.name}", 1)
    assert not [p for p in (tmp_path / "other").iterdir() if p.suffix == ".part"]


def _fetch(arguments):
    folder, url, size = arguments
    return str(ShardCache(folder).fetch(url, size))


@pytest.mark.slow
def test_processes_of_a_node_download_once(server, digits, tmp_path):
    tar = next(digits.glob("*.tar"))
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        paths = pool.map(_fetch, [(str(tmp_path), f"{server.url}/{tar.name}", tar.stat().st_size)] * 8)
    assert len(set(paths)) == 1
    assert server.counts[tar.name] == 1


def test_the_least_recently_used_go_first(server, digits, tmp_path):
    tars = sorted(digits.glob("*.tar"))[:4]
    size = max(tar.stat().st_size for tar in tars)
    cache = ShardCache(tmp_path, limit=3 * size)
    for tar in (tars[0], tars[1], tars[2], tars[0], tars[3]):
        cache.fetch(f"{server.url}/{tar.name}", tar.stat().st_size)
    kept = {p.name.partition("-")[2] for p in tmp_path.glob("*.tar")}
    assert kept == {tars[0].name, tars[2].name, tars[3].name}


def test_no_url_can_start_a_program(tmp_path):
    marker = tmp_path / "owned"
    for url in (f"pipe:touch {marker}", f"pipe://touch {marker}", "ssh://host/x", "file:///etc", "hdfs://x"):
        with pytest.raises(ValueError, match="refused"):
            is_remote(url)
        with pytest.raises(ValueError, match="refused"):
            ShardDataModule(url, 64, SimCLR(8), cache_dir=str(tmp_path)).train_dataloader()
    assert not marker.exists()
    assert not is_remote("runs/data") and not is_remote("/data/pipe/x") and is_remote("s3://bucket/x")
