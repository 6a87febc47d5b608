"""An order service whose event loop is blocked in nine ways, and which forgets four things.

Starlette on uvicorn, SQLite on disk, and a client in a process of its own that keeps the service busy with small
requests and now and then asks for something that blocks.  It serves for about eight seconds and ends by itself:

    loopwatch run examples/orders.py

Every line at fault ends with a comment "fault: NAME", every one that begins what is never ended with "leak: NAME".
The blocks are found from outside, by ``loopwatch run``; the leaks by the guard around ``serve``.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import random
import re
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from loopwatch import no_leaks

ROUNDS = 2  # how often the client does everything that blocks
BLOCK = 0.35  # seconds that each fault is made to last
TARIFF_COUNTRIES = ("de", "fr", "pl", "es")
LABEL_PRINTER = ["sleep", str(BLOCK)]  # stands for the printer's command line tool


class Product:
    """One of a graph: each knows the products that are bought together with it."""

    __slots__ = ("related",)

    def __init__(self) -> None:
        self.related: list[Product] = []


class Shop:
    """What the service holds in memory, and its database, of such sizes that a fault lasts BLOCK on any machine."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "orders.sqlite"
        self.database = self.connect()
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = NORMAL")
        self.database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT, quantity INTEGER, note TEXT)")
        self.database.execute("INSERT INTO orders VALUES (1, 'teapot', 1, '')")
        self.prices = {"teapot": 1900}
        self.prices_lock = threading.Lock()
        self.export_done = asyncio.Event()
        self.audits: asyncio.Queue[int] = asyncio.Queue()
        self.mail_sent = threading.Event()
        self.displays: list[socket.socket] = []
        self.lines = [(i * 7 % 999, i % 9 + 1, i % 30) for i in range(20_000)]
        self.scores = [random.random() for _ in range(200_000)]
        self.scores *= units_for(lambda: sorted(self.scores + self.scores[:50_000]))
        self.days = units_for(lambda: price_report(self.lines, 1))
        self.catalogue = related_products()
        write_tariffs(folder)

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)


def seconds_of(work: Callable[[], object]) -> float:
    """Of CPU time: other programs' load must not make the work look longer than it is."""
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def units_for(work: Callable[[], object]) -> int:
    """How many times the work must be done to last BLOCK."""
    return max(1, round(BLOCK / min(seconds_of(work) for _ in range(3))))


def related_products() -> list[Product]:
    """A graph so big that the garbage collector needs about BLOCK to walk it."""
    gc.disable()
    products = [Product() for _ in range(150_000)]
    random.shuffle(products)
    stride = 4_000
    while True:
        for number, product in enumerate(products):
            product.related = products[number % stride :: stride]
        if seconds_of(gc.collect) >= BLOCK or stride < 500:
            gc.enable()
            return products
        stride = stride * 3 // 4


def write_tariffs(folder: Path) -> None:
    """Generated modules, one a country, as big as such modules are."""
    row = 'TARIFF_{0} = {{"code": "{0:08}", "duty": {1}.5, "unit": "kg"}}\n'

    def write(name: str, size: int) -> str:
        (folder / f"{name}.py").write_text("".join(row.format(number, number % 70) for number in range(size)))
        return name

    sys.path.append(str(folder))
    probes = iter([write(f"tariffs_probe{number}", 1_000) for number in range(3)])
    size = 1_000 * units_for(lambda: importlib.import_module(next(probes)))
    for country in TARIFF_COUNTRIES:
        write(f"tariffs_{country}", size)


# --- what blocks -----------------------------------------------------------------------------------------------------


def price_report(lines: list[tuple[int, int, int]], days: int) -> int:
    # Arithmetic over every line of every order, day by day: belongs into a process pool or into the database.
    return sum(p * q * (100 - d) // 100 for _ in range(days) for p, q, d in lines)  # fault: python


async def show_report(request: Request) -> JSONResponse:
    shop: Shop = request.app.state.shop
    return JSONResponse({"turnover": price_report(shop.lines, shop.days)})


async def pay(request: Request) -> JSONResponse:
    # The payment provider answers at the fourth attempt.  The pauses between them should be asyncio.sleep().
    for attempt in range(3):
        time.sleep(BLOCK * 2**attempt / 7)  # fault: sleep
    return JSONResponse({"paid": True})


async def check_note(request: Request) -> JSONResponse:
    # Quadratic in the length of a run of blanks that does not end the note.  str.rstrip() is not.
    note = (await request.body()).decode()
    untidy = re.match(r".*?\s+$", note)  # fault: regex
    return JSONResponse({"tidy": untidy is None})


async def add_order(request: Request) -> JSONResponse:
    # Waits for whoever else is writing, here the import of the stock: should run in a thread.
    shop: Shop = request.app.state.shop
    order = await request.json()
    shop.database.execute("BEGIN IMMEDIATE")  # fault: sqlite
    row = (order["item"], order["quantity"], "")
    key = shop.database.execute("INSERT INTO orders (item, quantity, note) VALUES (?, ?, ?)", row).lastrowid
    shop.database.execute("COMMIT")
    return JSONResponse({"id": key}, 201)


async def import_stock(request: Request) -> JSONResponse:
    shop: Shop = request.app.state.shop

    def write(begun: threading.Event) -> None:
        database = shop.connect()
        database.execute("BEGIN IMMEDIATE")
        begun.set()
        time.sleep(BLOCK * 1.3)  # the warehouse's answer, in a thread: no fault but for the transaction that is open
        database.execute("UPDATE orders SET quantity = quantity + 1 WHERE id = 1")
        database.execute("COMMIT")
        database.close()

    await started(write, request)
    return JSONResponse({}, 202)


async def quote(request: Request) -> JSONResponse:
    # The lock is held all through the refresh: it should be held only to exchange one dictionary for another.
    shop: Shop = request.app.state.shop
    with shop.prices_lock:  # fault: lock
        price = shop.prices["teapot"]
    return JSONResponse({"price": price})


async def refresh_prices(request: Request) -> JSONResponse:
    shop: Shop = request.app.state.shop

    def refresh(begun: threading.Event) -> None:
        with shop.prices_lock:
            begun.set()
            time.sleep(BLOCK * 1.3)  # the supplier's answer
            shop.prices["teapot"] += 1

    await started(refresh, request)
    return JSONResponse({}, 202)


def best_customers(scores: list[float]) -> list[float]:
    # In a thread, and yet the loop stands still: one C call that never lets go of the GIL.
    return sorted(scores)[-10:]  # fault: gil


async def rank_customers(request: Request) -> JSONResponse:
    shop: Shop = request.app.state.shop
    return JSONResponse({"best": await asyncio.to_thread(best_customers, shop.scores)})


async def show_tariffs(request: Request) -> JSONResponse:
    # The first request for each country pays for the import.
    country = request.path_params["country"]
    module = importlib.import_module(f"tariffs_{country}")  # fault: import
    return JSONResponse({"first": module.TARIFF_0})


async def print_label(request: Request) -> JSONResponse:
    # asyncio.create_subprocess_exec() would let others go on.
    subprocess.run(LABEL_PRINTER, capture_output=True, check=True)  # fault: subprocess
    return JSONResponse({"printed": True})


async def export(request: Request) -> JSONResponse:
    shop: Shop = request.app.state.shop
    shop.export_done.set()
    return JSONResponse({}, 202)


async def housekeeping(shop: Shop) -> None:
    while True:
        await shop.export_done.wait()
        shop.export_done.clear()
        # Well meant: walks every object of the process, the whole catalogue included.
        gc.collect()  # fault: gc


# --- what is never ended ---------------------------------------------------------------------------------------------


async def audit(shop: Shop) -> None:
    # Nothing puts anything into this queue any more.
    await shop.audits.get()


async def start_audit(request: Request) -> JSONResponse:
    asyncio.create_task(audit(request.app.state.shop), name="audit")  # leak: task
    return JSONResponse({}, 202)


async def send_mail(request: Request) -> JSONResponse:
    # The mail server's answer is waited for without a limit.
    shop: Shop = request.app.state.shop
    threading.Thread(target=shop.mail_sent.wait, name="mailer").start()  # leak: thread
    return JSONResponse({}, 202)


async def stock_levels() -> AsyncIterator[int]:
    try:
        for level in range(1000):
            yield level
    finally:
        await asyncio.sleep(0)  # gives the cursor back


async def first_stock_level(request: Request) -> JSONResponse:
    # The generator stays suspended after the return: contextlib.aclosing() around it would end it.
    async for level in stock_levels():  # leak: generator
        return JSONResponse({"level": level})
    return JSONResponse({"level": None})


async def add_display(request: Request) -> JSONResponse:
    # Kept for ever, in a list that nobody reads.
    shop: Shop = request.app.state.shop
    display = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # leak: socket
    shop.displays.append(display)
    return JSONResponse({}, 201)


# --- what is all right -----------------------------------------------------------------------------------------------


async def started(work: Callable[[threading.Event], None], request: Request) -> None:
    """Has a thread do the work, and comes back once the work has begun."""
    begun = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(work, begun))
    request.app.state.tasks.add(task)
    task.add_done_callback(request.app.state.tasks.discard)
    while not begun.is_set():
        await asyncio.sleep(0.005)


async def show_order(request: Request) -> JSONResponse:
    shop: Shop = request.app.state.shop
    key = request.path_params["key"]
    row = shop.database.execute("SELECT item, quantity FROM orders WHERE id = ?", (key,)).fetchone()
    if row is None:
        return JSONResponse({"error": "no such order"}, 404)
    return JSONResponse({"item": row[0], "quantity": row[1]})


ROUTES = [
    Route("/orders", add_order, methods=["POST"]),
    Route("/orders/{key:int}", show_order),
    Route("/orders/check-note", check_note, methods=["POST"]),
    Route("/orders/label", print_label, methods=["POST"]),
    Route("/payments", pay, methods=["POST"]),
    Route("/report", show_report),
    Route("/stock", import_stock, methods=["POST"]),
    Route("/prices", refresh_prices, methods=["POST"]),
    Route("/prices/teapot", quote),
    Route("/customers/best", rank_customers),
    Route("/tariffs/{country}", show_tariffs),
    Route("/export", export, methods=["POST"]),
    Route("/audits", start_audit, methods=["POST"]),
    Route("/mails", send_mail, methods=["POST"]),
    Route("/stock/first", first_stock_level),
    Route("/displays", add_display, methods=["POST"]),
]


def tell(leaks: list[Any]) -> None:
    for leak in leaks:
        print(f"orders: left behind: {leak.headline()}", flush=True)


async def serve(shop: Shop) -> int:
    app = Starlette(routes=ROUTES)
    app.state.shop = shop
    app.state.tasks = {asyncio.create_task(housekeeping(shop), name="housekeeping")}
    config = uvicorn.Config(app, http="h11", lifespan="off", log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="server")
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = await asyncio.create_subprocess_exec(sys.executable, __file__, "--client", address)
        try:
            code = await asyncio.wait_for(client.wait(), 60)
        finally:
            if client.returncode is None:
                client.kill()
            server.should_exit = True
            await serving
            for task in app.state.tasks:
                task.cancel()
    shop.database.close()
    return code


async def serve_and_look(shop: Shop) -> int:
    async with no_leaks(action=tell, blocking=False, grace_period=1):
        code = await serve(shop)
    shop.mail_sent.set()
    return code


# --- the client, in another process ----------------------------------------------------------------------------------


def hostile_note() -> str:
    """As many blanks as it takes for check_note's pattern to need BLOCK."""
    length = 2_000
    seconds = min(seconds_of(lambda: re.match(r".*?\s+$", "x" + " " * length + "x")) for _ in range(3))
    return "x" + " " * int(length * (BLOCK / seconds) ** 0.5) + "x"


async def visit(address: str) -> None:
    note = hostile_note()
    waits: list[float] = []

    async def ask(client: httpx.AsyncClient, method: str, path: str, body: str | None = None) -> None:
        begun = time.perf_counter()
        (await client.request(method, path, content=body)).raise_for_status()
        waits.append(time.perf_counter() - begun)
        await asyncio.sleep(0.02)

    async def browse(client: httpx.AsyncClient) -> None:
        while True:
            await ask(client, "GET", "/orders/1")

    async def shop(client: httpx.AsyncClient) -> None:
        countries = iter(TARIFF_COUNTRIES)
        for _ in range(ROUNDS):
            await ask(client, "POST", "/payments")
            await ask(client, "POST", "/orders/check-note", note)
            await ask(client, "GET", "/report")
            await ask(client, "POST", "/stock")
            await ask(client, "POST", "/orders", json.dumps({"item": "cup", "quantity": 6}))
            await ask(client, "POST", "/prices")
            await ask(client, "GET", "/prices/teapot")
            await ask(client, "GET", "/customers/best")
            await ask(client, "GET", f"/tariffs/{next(countries)}")
            await ask(client, "POST", "/orders/label")
            await ask(client, "POST", "/export")
        await ask(client, "POST", "/audits")
        await ask(client, "POST", "/mails")
        await ask(client, "GET", "/stock/first")
        await ask(client, "POST", "/displays")

    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        browsing = [asyncio.create_task(browse(client)) for _ in range(3)]
        await shop(client)
        for task in browsing:
            task.cancel()
        await asyncio.gather(*browsing, return_exceptions=True)
    median, worst = statistics.median(waits), max(waits)
    print(f"orders: {len(waits)} requests, median {median * 1e3:.0f} ms, slowest {worst * 1e3:.0f} ms", flush=True)


def main() -> int:
    if sys.argv[1:2] == ["--client"]:
        asyncio.run(visit(sys.argv[2]))
        return 0
    with tempfile.TemporaryDirectory(prefix="orders-") as folder:
        return asyncio.run(serve_and_look(Shop(Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
