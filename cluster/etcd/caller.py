"""Single calls to whichever member answers, and what is checked in every answer."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import grpc

from ringpost.cluster.etcd.endpoints import Endpoint, Endpoints, EtcdOptions
from ringpost.cluster.etcd.messages import surely_not_done, token_is_stale, worth_another
from ringpost.cluster.kv import KvError, OutcomeUnknown, StoreChanged
from ringpost.internal.etcd import rpc_pb2


class Answer(Protocol):
    """What all of etcd's answers have."""

    @property
    def header(self) -> rpc_pb2.ResponseHeader:
        """Who answers, as of which revision."""


A = TypeVar("A", bound=Answer)
Method = Callable[[Endpoint], Callable[..., Any]]


class CallError(KvError):
    """One member did not do it. `definite`: and never will; `elsewhere`: another one may."""

    def __init__(self, endpoint: Endpoint, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"etcd at {endpoint.address}: {code.name} {details}")
        self.code = code
        self.definite = surely_not_done(code, details)
        self.elsewhere = worth_another(code, details)
        self.stale_token = token_is_stale(code, details)


class Caller:
    """Calls members in turn. `floor` is the highest revision that any linearizable answer showed."""

    def __init__(self, options: EtcdOptions) -> None:
        self.options = options
        self.endpoints = Endpoints(options)
        self.floor = 0
        self._cluster_id = 0
        self._token = ""

    async def read(self, method: Method, request: Any, answer: type[A], *, linearizable: bool = True) -> A:
        """Asks one member after the other. Also for writes that may safely be done twice. Raises KvError."""
        failure: KvError = KvError("no etcd endpoint can be reached")
        for endpoint in self.endpoints.in_order():
            if not await endpoint.ready(self.options.connect_timeout_s):
                self.endpoints.failed(endpoint)
                continue
            try:
                return await self._ask(endpoint, method, request, answer, linearizable)
            except CallError as error:
                if not error.elsewhere:
                    raise
                failure = error
                self.endpoints.failed(endpoint)
        raise failure

    async def write(self, method: Method, request: Any, answer: type[A]) -> A:
        """Asks the first member that is there; another one only when that one has surely not done it.

        Raises OutcomeUnknown, KvError.
        """
        failure: KvError = KvError("no etcd endpoint can be reached")
        for endpoint in self.endpoints.in_order():
            if not await endpoint.ready(self.options.connect_timeout_s):
                self.endpoints.failed(endpoint)
                continue
            try:
                return await self._ask(endpoint, method, request, answer, True)
            except StoreChanged as error:
                raise OutcomeUnknown(f"perhaps done in a store that is not ours: {error}") from error
            except CallError as error:
                if error.elsewhere:
                    self.endpoints.failed(endpoint)
                if not error.definite:
                    raise OutcomeUnknown(str(error)) from error
                if not error.elsewhere:
                    raise
                failure = error
        raise failure

    async def connected(self) -> Endpoint:
        """A member to open a stream to. Raises KvError."""
        for endpoint in self.endpoints.in_order():
            if await endpoint.ready(self.options.connect_timeout_s):
                return endpoint
            self.endpoints.failed(endpoint)
        raise KvError("no etcd endpoint can be reached")

    async def metadata(self, endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
        """What every call carries: members without a leader shall say so, and who we are. Raises KvError."""
        if self.options.user and not self._token:
            request = rpc_pb2.AuthenticateRequest(name=self.options.user, password=self.options.password)
            try:
                answer = await endpoint.auth.Authenticate(request, timeout=self.options.call_timeout_s)
            except grpc.aio.AioRpcError as error:
                raise CallError(endpoint, error.code(), error.details() or "") from error
            self._token = answer.token
        token = (("token", self._token),) if self._token else ()
        return (("hasleader", "true"), *token)

    def forget_token(self) -> None:
        """The next call asks for a new one."""
        self._token = ""

    @property
    def cluster_id(self) -> int:
        """etcd's own; 0 before the first answer."""
        return self._cluster_id

    def check(self, header: rpc_pb2.ResponseHeader, floor: int = 0) -> None:
        """Raises StoreChanged when the answer comes from another cluster, or from before `floor`."""
        self._cluster_id = self._cluster_id or header.cluster_id
        if header.cluster_id != self._cluster_id:
            raise StoreChanged(f"etcd's cluster id was {self._cluster_id:x} and is {header.cluster_id:x} now")
        if header.revision < floor:
            raise StoreChanged(
                f"etcd's revision fell from {floor} to {header.revision}: it was wiped, or restored from a backup"
            )

    async def _ask(self, endpoint: Endpoint, method: Method, request: Any, answer: type[A], linearizable: bool) -> A:
        try:
            return await self._ask_once(endpoint, method, request, answer, linearizable)
        except CallError as error:
            if not (self.options.user and error.stale_token):
                raise
            self.forget_token()
            return await self._ask_once(endpoint, method, request, answer, linearizable)

    async def _ask_once(
        self, endpoint: Endpoint, method: Method, request: Any, answer: type[A], linearizable: bool
    ) -> A:
        metadata = await self.metadata(endpoint)
        floor = self.floor  # of now: answers may overtake each other
        try:
            got = await method(endpoint)(request, timeout=self.options.call_timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise CallError(endpoint, error.code(), error.details() or "") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The connection was closed by us: gRPC says so in this way.
            raise CallError(endpoint, grpc.StatusCode.CANCELLED, "the client was closed") from None
        assert isinstance(got, answer)
        self.check(got.header, floor if linearizable else 0)
        if linearizable:
            self.floor = max(self.floor, got.header.revision)
        return got
