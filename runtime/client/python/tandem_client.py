"""Asks a Tandem server over the Tandem Stream Protocol: a thin binding of libtandem_client by ctypes.

    with Client(["localhost:8001"]) as client:
        for event in client.generate(prompt="12 + 30", max_tokens=16):
            print(event.text, end="")

The library is looked for as libtandem_client.so.0 where the system's loader looks (LD_LIBRARY_PATH first), then in the
`lib` folders of the prefix that this file is installed in. A client belongs to one thread at a time; Stream.cancel
alone may be called from any."""

import ctypes
import glob
import os
import time
import weakref
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Union

_NAME = "libtandem_client.so.0"
_OK, _AGAIN, _END, _TIMEOUT = 0, -1, -2, -3
_FINISH = {1: "stop", 2: "length", 3: "cancelled"}
_WORDS = {-1: "nothing yet", -3: "the time of the request is over", -4: "no server answers",
          -5: "the server was started anew", -6: "the answer is not what the server promised", -7: "no memory",
          -8: "not a field of a request, or a value of the wrong kind", -9: "the system has no descriptor for it"}
_ON_DISCONNECT = {"continue": 0, "cancel": 1}
_ID_BYTES = 16
_SLICE_MS = 200  # Python's signal handlers run between two waits


class TandemError(Exception):
    """A request that failed. `code` is positive for a server's error (the table in PROTOCOL.md) and negative for the
    library's own (enum tandem_result); `param` names the field that is wrong, if one is."""

    def __init__(self, code: int, message: str, param: str = "", retry_after_ms: int = 0):
        super().__init__(message)
        self.code = code
        self.param = param
        self.retry_after_ms = retry_after_ms


class Usage(NamedTuple):
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class Logprob(NamedTuple):
    id: int
    logprob: float
    bytes: bytes
    alternatives: List["Logprob"]


class Event(NamedTuple):
    """A piece of a choice's answer: what is new since its last event. `finish_reason` is set in a choice's last event,
    `usage` in the request's."""

    choice: int
    offset: int
    ids: List[int]
    text: str
    reasoning: str
    logprobs: List[Logprob]
    finish_reason: Optional[str]
    usage: Optional[Usage]


class Status(NamedTuple):
    """How a server stands: struct tandem_status in client.h says what each number counts."""

    server: str
    running: int
    waiting: int
    queue_max: int
    kv_used: float
    replicas: int
    replicas_up: int
    draining: bool
    requests: int
    max_model_len: int
    model: str


# ---- the library


class _Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("servers", ctypes.POINTER(ctypes.c_char_p)),
                ("n_servers", ctypes.c_size_t), ("key", ctypes.c_char_p), ("name", ctypes.c_char_p),
                ("connect_timeout_ms", ctypes.c_uint32), ("give_up_ms", ctypes.c_uint32),
                ("failover_ms", ctypes.c_uint32), ("credit", ctypes.c_uint32), ("transport", ctypes.c_void_p)]


class _ToolCall(ctypes.Structure):
    _fields_ = [("id", ctypes.c_char_p), ("name", ctypes.c_char_p), ("arguments", ctypes.c_char_p)]


class _Message(ctypes.Structure):
    _fields_ = [("role", ctypes.c_char_p), ("content", ctypes.c_char_p), ("name", ctypes.c_char_p),
                ("tool_call_id", ctypes.c_char_p), ("tool_calls", ctypes.POINTER(_ToolCall)),
                ("n_tool_calls", ctypes.c_size_t)]


class _Event(ctypes.Structure):
    _fields_ = [("choice", ctypes.c_uint32), ("offset", ctypes.c_uint64), ("ids", ctypes.POINTER(ctypes.c_uint32)),
                ("n_ids", ctypes.c_size_t), ("text", ctypes.c_void_p), ("text_size", ctypes.c_size_t),
                ("reasoning", ctypes.c_void_p), ("reasoning_size", ctypes.c_size_t), ("logprobs", ctypes.c_void_p),
                ("logprobs_size", ctypes.c_size_t), ("finish", ctypes.c_int), ("last", ctypes.c_bool),
                ("prompt_tokens", ctypes.c_uint64), ("completion_tokens", ctypes.c_uint64),
                ("reasoning_tokens", ctypes.c_uint64)]


class _Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char_p), ("param", ctypes.c_char_p),
                ("retry_after_ms", ctypes.c_uint32)]


class _Status(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("server", ctypes.c_char_p), ("running", ctypes.c_uint32),
                ("waiting", ctypes.c_uint32), ("queue_max", ctypes.c_uint32), ("kv_used", ctypes.c_float),
                ("replicas", ctypes.c_uint32), ("replicas_up", ctypes.c_uint32), ("draining", ctypes.c_bool),
                ("requests", ctypes.c_uint32), ("max_model_len", ctypes.c_uint32), ("model", ctypes.c_char * 256)]


class _Cursor(ctypes.Structure):
    _fields_ = [("next", ctypes.c_void_p), ("left", ctypes.c_size_t)]


class _Logprob(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint32), ("logprob", ctypes.c_float), ("bytes", ctypes.c_void_p),
                ("size", ctypes.c_size_t)]


_POINTER, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
_CALLS = {
    "client_create": (ctypes.c_int, [ctypes.POINTER(_Options), ctypes.POINTER(_POINTER)]),
    "client_free": (None, [_POINTER]),
    "client_reconnects": (ctypes.c_uint64, [_POINTER]),
    "client_status": (ctypes.c_int, [_POINTER, ctypes.c_int, ctypes.POINTER(_Status)]),
    "request_create": (_POINTER, []),
    "request_free": (None, [_POINTER]),
    "request_int": (ctypes.c_int, [_POINTER, _TEXT, ctypes.c_uint64]),
    "request_float": (ctypes.c_int, [_POINTER, _TEXT, ctypes.c_double]),
    "request_text": (ctypes.c_int, [_POINTER, _TEXT, _TEXT, _SIZE]),
    "request_ids": (ctypes.c_int, [_POINTER, _TEXT, ctypes.POINTER(ctypes.c_uint32), _SIZE]),
    "request_bias": (ctypes.c_int, [_POINTER, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_float), _SIZE]),
    "request_message": (ctypes.c_int, [_POINTER, ctypes.POINTER(_Message)]),
    "submit": (ctypes.c_int, [_POINTER, _POINTER, ctypes.POINTER(_POINTER)]),
    "resume": (ctypes.c_int, [_POINTER, _TEXT, ctypes.POINTER(ctypes.c_uint64), _SIZE, ctypes.POINTER(_POINTER)]),
    "stream_id": (None, [_POINTER, _TEXT]),
    "stream_leave": (None, [_POINTER]),
    "stream_next": (ctypes.c_int, [_POINTER, ctypes.c_int, ctypes.POINTER(_Event)]),
    "stream_cancel": (None, [_POINTER]),
    "stream_free": (None, [_POINTER]),
    "stream_error": (ctypes.c_bool, [_POINTER, ctypes.POINTER(_Error)]),
    "logprob_next": (ctypes.c_bool, [ctypes.POINTER(_Cursor), ctypes.POINTER(_Logprob),
                                     ctypes.POINTER(ctypes.c_uint32)]),
    "logprob_alternative": (ctypes.c_bool, [ctypes.POINTER(_Cursor), ctypes.POINTER(_Logprob)]),
}


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_NAME)
    except OSError as error:
        prefix = os.path.dirname(os.path.abspath(__file__))
        found: List[str] = []
        while not found and prefix != os.path.dirname(prefix):
            prefix = os.path.dirname(prefix)
            found = glob.glob(f"{prefix}/lib/{_NAME}") + glob.glob(f"{prefix}/lib/*/{_NAME}")
        if not found:
            raise ImportError(f"{_NAME} is not found: install it, or put its folder into LD_LIBRARY_PATH") from error
        library = ctypes.CDLL(found[0])
    for name, (result, arguments) in _CALLS.items():
        function = getattr(library, f"tandem_{name}")
        function.restype, function.argtypes = result, arguments
    return library


_library = _load()


def _check(result: int, what: str) -> None:
    if result != _OK:
        raise TandemError(result, f"{what}: {_WORDS.get(result, 'failed')}", what)


# ---- requests


def _numbers(kind: type, values: Sequence[int], param: str) -> ctypes.Array:
    """An array of unsigned numbers, of which ctypes would silently take the lowest bits."""
    limit = 1 << 8 * ctypes.sizeof(kind)
    for value in values:
        if not 0 <= value < limit:
            raise TandemError(-8, f"{param}: {value!r} is not from 0 to {limit - 1}", param)
    return (kind * len(values))(*values)


def _ids(values: Sequence[int], param: str) -> ctypes.Array:
    return _numbers(ctypes.c_uint32, values, param)


def _encoded(text: Optional[str], param: str = "messages") -> Optional[bytes]:
    if text is not None and "\0" in text:
        raise TandemError(-8, f"{param}: a text cannot hold NUL", param)
    return text.encode() if text is not None else None


def _put_text(request: int, field: str, text: str) -> None:
    data = text.encode()
    _check(_library.tandem_request_text(request, field.encode(), data, len(data)), field)


def _put_ids(request: int, field: str, values: Sequence[int]) -> None:
    _check(_library.tandem_request_ids(request, field.encode(), _ids(values, field), len(values)), field)


def _put_message(request: int, message: dict) -> None:
    calls = [call.get("function", call) | {"id": call.get("id")} for call in message.get("tool_calls") or []]
    array = (_ToolCall * len(calls))(*[
        _ToolCall(_encoded(call["id"]), _encoded(call["name"]), _encoded(call["arguments"])) for call in calls])
    made = _Message(*[_encoded(message.get(part)) for part in ("role", "content", "name", "tool_call_id")], array,
                    len(calls))
    _check(_library.tandem_request_message(request, ctypes.byref(made)), "messages")


def _put_bias(request: int, bias: Dict[int, float]) -> None:
    values = (ctypes.c_float * len(bias))(*bias.values())
    ids = _ids([int(id) for id in bias], "logit_bias")
    _check(_library.tandem_request_bias(request, ids, values, len(bias)), "logit_bias")


_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def _put(request: int, field: str, value) -> None:
    """One sampling parameter, by the name it has in the protocol."""
    name = field.encode()
    if field == "stop":
        for text in [value] if isinstance(value, str) else value:
            _put_text(request, field, text)
    elif field == "stop_token_ids":
        _put_ids(request, field, value)
    elif field == "logit_bias":
        _put_bias(request, value)
    elif field == "on_disconnect" and value in _ON_DISCONNECT:
        _check(_library.tandem_request_int(request, name, _ON_DISCONNECT[value]), field)
    elif isinstance(value, str):
        _put_text(request, field, value)
    elif field in _FLOATS:
        _check(_library.tandem_request_float(request, name, value), field)
    elif isinstance(value, int) and 0 <= value < 1 << 64:
        _check(_library.tandem_request_int(request, name, value), field)
    else:
        raise TandemError(-8, f"{field}: {value!r} is not what it takes", field)


# ---- answers


def _text(at: Optional[int], size: int) -> str:
    return ctypes.string_at(at, size).decode("utf-8", "replace") if size else ""


def _logprob(entry: _Logprob) -> Logprob:
    return Logprob(entry.id, entry.logprob, ctypes.string_at(entry.bytes, entry.size) if entry.size else b"", [])


def _logprobs(event: _Event) -> List[Logprob]:
    cursor, entry, count = _Cursor(event.logprobs, event.logprobs_size), _Logprob(), ctypes.c_uint32()
    found = []
    while _library.tandem_logprob_next(ctypes.byref(cursor), ctypes.byref(entry), ctypes.byref(count)):
        found.append(_logprob(entry))
        for _ in range(count.value):
            _library.tandem_logprob_alternative(ctypes.byref(cursor), ctypes.byref(entry))
            found[-1].alternatives.append(_logprob(entry))
    return found


def _event(event: _Event) -> Event:
    usage = Usage(event.prompt_tokens, event.completion_tokens, event.reasoning_tokens) if event.last else None
    return Event(event.choice, event.offset, event.ids[:event.n_ids] if event.n_ids else [],
                 _text(event.text, event.text_size), _text(event.reasoning, event.reasoning_size), _logprobs(event),
                 _FINISH.get(event.finish), usage)


class Stream:
    """The events of one request: an iterator. A stream that is closed, or forgotten, before its end is cancelled."""

    def __init__(self, client: "Client", handle: int):
        self._client = client
        self._handle: Optional[int] = handle
        made = ctypes.create_string_buffer(_ID_BYTES)
        _library.tandem_stream_id(handle, made)
        self.id: bytes = made.raw  # for Client.resume, also of another process
        client._streams.add(self)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = _Event()
        result = _AGAIN
        while self._handle and result == _AGAIN:
            result = _library.tandem_stream_next(self._handle, _SLICE_MS, ctypes.byref(event))
        if result == _OK:
            return _event(event)
        error = self._error(result)
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def _error(self, result: int) -> Optional[TandemError]:
        error = _Error()
        if not self._handle or result == _END:
            return None
        if not _library.tandem_stream_error(self._handle, ctypes.byref(error)):
            return TandemError(result, _WORDS.get(result, "failed"))
        return TandemError(error.code, error.message.decode("utf-8", "replace"),
                           error.param.decode("utf-8", "replace"), error.retry_after_ms)

    def cancel(self) -> None:
        """Asks the server to end the answer, whose choices then finish with "cancelled". From any thread, but not while
        another one closes the stream."""
        if self._handle:
            _library.tandem_stream_cancel(self._handle)

    def close(self) -> None:
        """Frees the stream; further events are not wanted."""
        self._end(_library.tandem_stream_free)

    def leave(self) -> None:
        """Frees the stream and leaves its request to whoever resumes it by its id."""
        self._end(_library.tandem_stream_leave)

    def _end(self, function) -> None:
        if self._handle and self._client._handle:
            function(self._handle)
        self._handle = None
        self._client._streams.discard(self)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Client:
    """A connection to one of `servers` ("host:port"), made with the first request and again whenever it is lost.

    `timeout` is for how many seconds a request may take, and for how long one waits while no server answers; None: any
    time, and a minute."""

    def __init__(self, servers: Sequence[str], key: Optional[str] = None, timeout: Optional[float] = None):
        names = [server.encode() for server in servers]
        options = _Options(size=ctypes.sizeof(_Options), servers=(ctypes.c_char_p * len(names))(*names),
                           n_servers=len(names), key=_encoded(key, "key"), name=b"tandem_client.py")
        self._timeout_ms = max(1, int(timeout * 1000)) if timeout is not None else None
        if self._timeout_ms is not None:
            options.give_up_ms = min(self._timeout_ms, 0xFFFFFFFF)
        self._streams: weakref.WeakSet = weakref.WeakSet()
        self._handle: Optional[int] = None
        handle = _POINTER()
        result = _library.tandem_client_create(ctypes.byref(options), ctypes.byref(handle))
        if result == -8:
            raise TandemError(result, f"servers: each of {list(servers)} must be HOST:PORT; key: at most 512 bytes")
        _check(result, "Client")
        self._handle = handle.value

    def generate(self, prompt: Union[str, Sequence, None] = None, messages: Optional[Sequence[dict]] = None, ids: Optional[Sequence[int]] = None,
                 **sampling) -> Stream:
        """Begins a request and returns its events. Give one of `prompt` (a text, or a list of prompts, each a text or a
        list of ids), `messages` (dicts with role and content) and `ids` (of a prompt, or a list of such). `sampling`
        takes the fields of SUBMIT by their names: max_tokens, temperature, top_p, seed, n, stop, logprobs, deadline_ms,
        on_disconnect ("continue" or "cancel"), ..."""
        self._check_open()
        request = _library.tandem_request_create()
        try:
            for one in [prompt] if isinstance(prompt, str) else prompt or []:
                if isinstance(one, str):
                    _put_text(request, "prompt", one)
                else:
                    _put_ids(request, "prompt_ids", one)
            for one in [] if ids is None else ids if len(ids) and not isinstance(ids[0], int) else [ids]:
                _put_ids(request, "prompt_ids", one)
            for message in messages or []:
                _put_message(request, message)
            for field, value in {"timeout_ms": self._timeout_ms, **sampling}.items():
                if value is not None:
                    _put(request, field, value)
            handle = _POINTER()
            _check(_library.tandem_submit(self._handle, request, ctypes.byref(handle)), "generate")
        finally:
            _library.tandem_request_free(request)
        return Stream(self, handle.value)

    def resume(self, id: bytes, offsets: Sequence[int] = ()) -> Stream:
        """Takes up a request by the id of its stream: of this client or of another one with the same key, in this process
        or another, that left or lost it not longer ago than the server's resume window. `offsets` says for each choice
        how many of its ids are there already; the events go on behind them. The client's `timeout` is not for it."""
        self._check_open()
        if len(id) != _ID_BYTES:
            raise TandemError(-8, f"id: {len(id)} bytes; a stream's id has {_ID_BYTES}", "id")
        handle = _POINTER()
        array = _numbers(ctypes.c_uint64, offsets, "offsets")
        _check(_library.tandem_resume(self._handle, id, array, len(offsets), ctypes.byref(handle)), "resume")
        return Stream(self, handle.value)

    def status(self) -> Status:
        """Asks the server that the client is connected to, or the first one that answers, how it stands."""
        self._check_open()
        found = _Status(size=ctypes.sizeof(_Status))
        end = time.monotonic() + self._timeout_ms / 1000 if self._timeout_ms is not None else None
        result = _AGAIN
        while result == _AGAIN:
            result = _library.tandem_client_status(self._handle, _SLICE_MS, ctypes.byref(found))
            if result == _AGAIN and end is not None and time.monotonic() >= end:
                result = _TIMEOUT
        _check(result, "status")
        numbers = [getattr(found, name) for name in Status._fields[1:-1]]
        return Status(found.server.decode(), *numbers, found.model.decode("utf-8", "replace"))

    def _check_open(self) -> None:
        if not self._handle:
            raise TandemError(-8, "the client is closed")

    @property
    def reconnects(self) -> int:
        """Connections that were lost so far."""
        return _library.tandem_client_reconnects(self._handle) if self._handle else 0

    def close(self) -> None:
        """Ends the connection and all streams."""
        handle, self._handle = self._handle, None
        for stream in list(self._streams):
            stream.close()
        _library.tandem_client_free(handle)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()
