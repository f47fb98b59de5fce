"""The admin API of a running server, as the command line needs it.

Owns the HTTP calls and turning error answers back into sentences. Refuses tables and flags.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from adapters.artifact import ADAPTER_FILES, SERVED_FILES
from adapters.carriage import Arrival, sent_folder
from adapters.errors import AdapterError, InvalidAdapter
from adapters.experiments_calls import RemoteExperiments
from adapters.feedback_calls import RemoteFeedback
from adapters.fetching import VersionArrival
from adapters.transfer import Transfer, check_export, new_export

UPLOAD_SECONDS = 600


class RemoteRegistry(RemoteExperiments, RemoteFeedback):
    """A server at `url`, spoken to with an admin key. Every call raises AdapterError."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}

    def publish(
        self,
        adapter_id: str,
        folder: Path,
        *,
        activate: bool,
        owner: str | None = None,
        force: bool = False,
        idempotency_key: str | None = None,
    ) -> Any:
        missing = [f"{name} is missing" for name in SERVED_FILES if not (folder / name).is_file()]
        if missing:
            raise InvalidAdapter(missing)
        with ExitStack() as files:
            parts = {
                name.partition(".")[0]: (name, files.enter_context((folder / name).open("rb")))
                for name in ADAPTER_FILES
                if (folder / name).is_file()
            }
            form = {"activate": str(activate).lower(), **({"owner": owner} if owner else {})}
            form |= {"force": "true"} if force else {}
            path = f"/admin/adapters/{adapter_id}/versions"
            once = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
            return self._call("POST", path, files=parts, data=form, headers=once)

    def list_adapters(self) -> Any:
        return self._call("GET", "/admin/adapters")["data"]

    def describe(self, adapter_id: str) -> Any:
        return self._call("GET", f"/admin/adapters/{adapter_id}")

    def activate(
        self, adapter_id: str, version: int, expected_version: int | None, *, force: bool = False
    ) -> Any:
        wish: dict[str, Any] = {"version": version, "expected_version": expected_version}
        wish |= {"force": True} if force else {}
        return self._call("POST", f"/admin/adapters/{adapter_id}/activate", json=wish)

    def rollback(self, adapter_id: str, expected_version: int | None) -> Any:
        wish = {"expected_version": expected_version}
        return self._call("POST", f"/admin/adapters/{adapter_id}/rollback", json=wish)

    def retire(self, adapter_id: str) -> None:
        self._call("DELETE", f"/admin/adapters/{adapter_id}")

    def set_grants(
        self, adapter_id: str, *, everyone: bool, users: Sequence[str], groups: Sequence[str]
    ) -> Any:
        wish = {"everyone": everyone, "users": users, "groups": groups}
        return self._call("PUT", f"/admin/adapters/{adapter_id}/grants", json=wish)

    def verify(self) -> Any:
        return self._call("POST", "/admin/store/verify")

    def collect(self, hours: float, *, dry_run: bool) -> Any:
        wish = {"hours": hours, "dry_run": dry_run}
        return self._call("POST", "/admin/store/collect", json=wish)

    def export(self, folder: Path) -> Transfer:
        with new_export(folder) as draft:
            arrival = Arrival(draft)
            try:
                with self._answering():
                    self._receive("/admin/registry", arrival.feed)
                arrival.finish()
            finally:
                arrival.close()
            return check_export(draft)

    def fetch(self, adapter_id: str, version: int, digest: str, folder: Path) -> None:
        """The files of one version into the new `folder`, which are those of this digest."""
        arrival = VersionArrival(folder, digest)
        with self._answering():
            self._receive(f"/admin/adapters/{adapter_id}/versions/{version}/files", arrival.feed)
        arrival.finish()

    def import_(self, folder: Path) -> Transfer:
        pieces = sent_folder(folder)
        first = next(pieces)  # what is wrong with the folder is told before the server is asked

        def body() -> Iterator[bytes]:
            yield first
            yield from pieces

        kind = {"Content-Type": "application/x-tar"}
        return Transfer(**self._call("POST", "/admin/registry", content=body(), headers=kind))

    def create_user(self, user_id: str) -> Any:
        return self._call("POST", "/admin/users", json={"id": user_id})

    def list_users(self) -> Any:
        return self._call("GET", "/admin/users")["data"]

    def delete_user(self, user_id: str) -> None:
        self._call("DELETE", f"/admin/users/{user_id}")

    def assign(self, user_id: str, adapter_id: str | None) -> Any:
        return self._call("PUT", f"/admin/users/{user_id}/assignment", json={"adapter": adapter_id})

    def limits(self, user_id: str) -> Any:
        return self._call("GET", f"/admin/users/{user_id}/limits")

    def set_limits(self, user_id: str, bounds: Mapping[str, int | None]) -> Any:
        return self._call("PUT", f"/admin/users/{user_id}/limits", json=bounds)

    def create_key(self, user_id: str | None, role: str, days: float | None) -> Any:
        if user_id is None:
            raise AdapterError("On a server a key belongs to a user: give --user.")
        return self._call("POST", f"/admin/users/{user_id}/keys", json={"role": role, "days": days})

    def revoke_key(self, key_id: str) -> None:
        self._call("DELETE", f"/admin/keys/{key_id}")

    def create_group(self, group_id: str) -> Any:
        return self._call("POST", "/admin/groups", json={"id": group_id})

    def list_groups(self) -> Any:
        return self._call("GET", "/admin/groups")["data"]

    def delete_group(self, group_id: str) -> None:
        self._call("DELETE", f"/admin/groups/{group_id}")

    def add_members(self, group_id: str, users: Sequence[str]) -> Any:
        return self._call("POST", f"/admin/groups/{group_id}/members", json={"users": users})

    def remove_members(self, group_id: str, users: Sequence[str]) -> None:
        for user in users:
            self._call("DELETE", f"/admin/groups/{group_id}/members/{user}")

    def set_quota(self, owner: str, max_versions: int | None, max_bytes: int | None) -> Any:
        bounds = {"max_versions": max_versions, "max_bytes": max_bytes}
        return self._call("PUT", f"/admin/quotas/{owner}", json=bounds)

    def list_quotas(self) -> Any:
        return self._call("GET", "/admin/quotas")["data"]

    def delete_quota(self, owner: str) -> None:
        self._call("DELETE", f"/admin/quotas/{owner}")

    def audit(self, subject: str | None, limit: int) -> Any:
        page = {"limit": limit, **({"subject": subject} if subject else {})}
        return self._call("GET", "/admin/audit", params=page)["data"]

    def _call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Any:
        sent = {**self._headers, **(headers or {})}
        with self._answering():
            answer = httpx.request(
                method, self._url + path, headers=sent, timeout=UPLOAD_SECONDS, **options
            )
        if answer.is_error:
            raise AdapterError(_sentence(answer))
        return answer.json() if answer.content else None

    def _receive(self, path: str, feed: Callable[[bytes], None]) -> None:
        get = httpx.stream("GET", self._url + path, headers=self._headers, timeout=UPLOAD_SECONDS)
        with get as answer:
            if answer.is_error:
                answer.read()
                raise AdapterError(_sentence(answer))
            for piece in answer.iter_bytes():
                feed(piece)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """A server that is not there, or goes away in this block, is one sentence."""
        try:
            yield
        except httpx.RemoteProtocolError as error:
            raise AdapterError(f"The server at {self._url} broke off: {error}.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AdapterError(f"No server answers at {self._url}: {error}.") from error


def _sentence(answer: httpx.Response) -> str:
    try:
        body: Mapping[str, Any] = answer.json()
        return str(body["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered {answer.status_code}: is this a bapo server?"
