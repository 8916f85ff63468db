"""The Kubeflow Pipelines API: authentication, time limits, retries, and lists over all their pages."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.storage import expand_user
from secvec.pipelines.cluster_errors import NotTheApiError, describe_failure, may_pass

# The name under which kfp's own command line takes it; never an option, which `ps` would show to everyone.
TOKEN_VARIABLE = "KFP_EXISTING_TOKEN"
HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CONNECT_SECONDS = 10.0
_NOT_FOUND, _CONFLICT = 404, 409
_PAGE_SIZE = 100
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to wait for an API that fails.

    Attributes:
        pauses: Seconds between attempts; one attempt more than there are pauses.
        answer_seconds: How long an answer may take.
    """

    pauses: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0)
    answer_seconds: float = 60.0


@dataclass(frozen=True)
class Cluster:
    """One Kubeflow Pipelines API as one user sees it.

    Attributes:
        api: `kfp.Client`; its generated APIs hang on it as ``runs``, ``experiments``, ``pipelines``, ...
        host: Address, for messages.
        namespace: The user's namespace; empty where the cluster has a single user.
        patience: How long to wait for an API that fails.
    """

    api: Any
    host: str
    namespace: str
    patience: Patience

    def call(self, action: str, function: Callable[..., T], **arguments: Any) -> T:
        """Call one function of the API that may be repeated without harm.

        Args:
            action: What is done, for an error: ``list experiments``.
            function: Function of a generated API.
            arguments: Its arguments.

        Raises:
            SecvecError: It failed for good, or more often than `patience` allows.
        """
        return self._repeat(action, lambda: self._once(function, **arguments))

    def delete(self, action: str, function: Callable[..., Any], **arguments: Any) -> None:
        """Call a function that deletes; what is gone already, also by an answer that was lost, is fine.

        Raises:
            SecvecError: It failed for good, or more often than `patience` allows.
        """

        def attempt() -> None:
            try:
                self._once(function, **arguments)
            except Exception as error:
                if getattr(error, "status", None) != _NOT_FOUND:
                    raise

        self._repeat(action, attempt)

    def ensure(
        self, action: str, *, find: Callable[[], T | None], create: Callable[..., T], **arguments: Any
    ) -> T:
        """Give what `find` finds, or create it: once, even if an answer is lost or another one is quicker.

        A create whose answer was lost may have happened, so `find` is asked again before each attempt.

        Raises:
            SecvecError: It failed for good, or more often than `patience` allows.
        """

        def attempt() -> T:
            if (found := find()) is not None:
                return found
            try:
                return self._once(create, **arguments)
            except Exception as error:
                if getattr(error, "status", None) == _CONFLICT and (found := find()) is not None:
                    return found
                raise

        return self._repeat(action, attempt)

    def list_all(
        self, action: str, function: Callable[..., Any], *, field: str, **arguments: Any
    ) -> Iterator[Any]:
        """Yield every item of a list, page by page.

        Args:
            action: What is done, for an error.
            function: The API's list function.
            field: Attribute of its answer that holds the items.
            arguments: Its arguments.

        Raises:
            SecvecError: A page cannot be had.
        """
        token = ""
        while True:
            page = self.call(action, function, page_token=token, page_size=_PAGE_SIZE, **arguments)
            yield from getattr(page, field) or []
            token = page.next_page_token or ""
            if not token:
                return

    def in_namespace(self) -> dict[str, str]:
        """The namespace as an argument, where the cluster has any."""
        return {"namespace": self.namespace} if self.namespace else {}

    def _repeat(self, action: str, attempt: Callable[[], T]) -> T:
        for pause in self.patience.pauses:
            try:
                return attempt()
            except Exception as error:  # the API client lets urllib3's and its own errors through
                if not may_pass(error):
                    raise self._explain(error, action) from error
            time.sleep(pause)
        try:
            return attempt()
        except Exception as error:
            raise self._explain(error, action) from error

    def _once(self, function: Callable[..., T], **arguments: Any) -> T:
        return _call_once(function, self.patience, **arguments)

    def _explain(self, error: Exception, action: str) -> SecvecError:
        return describe_failure(
            error, action, host=self.host, namespace=self.namespace, seconds=self.patience.answer_seconds
        )


def named(name: str, *, key: str = "display_name") -> str:
    """Give the API's filter for one name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "string_value": name}]})


def connect(
    host: str, *, namespace: str = "", ca_certificate: str = "", patience: Patience | None = None
) -> Cluster:
    """Reach the API with what authentication there is, and prove that it answers.

    Credentials, in this order: the token in ``KFP_EXISTING_TOKEN``; the service-account token that a pod
    finds at ``KF_PIPELINES_SA_TOKEN_PATH`` (by default where KFP's pods have it), read anew for each request;
    with no host, what `kfp.Client` finds in the pod or in the kubeconfig.

    Args:
        host: Address of the API; by default ``KF_PIPELINES_ENDPOINT``.
        namespace: The user's namespace; by default that of the pod or of kfp's context file.
        ca_certificate: File with the certificate authority of an https host.
        patience: How long to wait for an API that fails.

    Raises:
        SecvecError: No host, no such certificate file, the API does not answer or refuses the credentials,
            or the namespace does not fit the cluster.
    """
    host = (host or os.environ.get(HOST_VARIABLE, "")).rstrip("/")
    _check_address(host, ca_certificate)
    logging.getLogger("kfp_server_api").setLevel(logging.ERROR)
    patience = patience or Patience()
    api = _make_client(host, ca_certificate=ca_certificate)
    shown = host or "the cluster's own API"
    health = Cluster(api, shown, namespace, patience).call(
        "reach the API", api.healthzs.healthz_service_get_healthz
    )
    if health.multi_user:
        namespace = namespace or _own_namespace(api)
        if not namespace:
            raise SecvecError("has more than one user", where=shown, accepted="a namespace: --namespace NAME")
    elif namespace:
        raise SecvecError(
            f"has a single user and no namespaces, so {namespace!r} means nothing",
            where=shown,
            accepted="no --namespace",
        )
    return Cluster(api, shown, namespace, patience)


def _check_address(host: str, ca_certificate: str) -> None:
    if not host and "KUBERNETES_SERVICE_HOST" not in os.environ and not _kubeconfig().is_file():
        raise SecvecError(
            "no host",
            where="secvec",
            accepted=f"--host URL, {HOST_VARIABLE}, a pod in the cluster or a kubeconfig",
        )
    if host and not host.startswith(("http://", "https://")):
        raise SecvecError("is no address", where=host, accepted="http://... or https://...")
    if ca_certificate and not Path(ca_certificate).is_file():
        raise SecvecError("no such file", where=ca_certificate, accepted="a PEM file of certificates")


def _kubeconfig() -> Path:
    named_first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return expand_user(named_first or "~/.kube/config")


def _own_namespace(api: Any) -> str:
    if NAMESPACE_FILE.is_file():
        return NAMESPACE_FILE.read_text().strip()
    return str(api.get_user_namespace() or "")


def _make_client(host: str, *, ca_certificate: str) -> Any:
    """Make a `kfp.Client` that asks for nothing and writes nothing while it is made."""
    import kfp
    from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH
    from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

    class QuietClient(kfp.Client):
        def _load_config(self, *args: Any, **kwargs: Any) -> Any:
            config = super()._load_config(*args, **kwargs)
            config.retries = False  # urllib3's own retries would multiply with those here
            return config

        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            # The parent asks five times without a time limit, and then writes a file into HOME.
            from kfp_server_api import V2beta1GetHealthzResponse

            return V2beta1GetHealthzResponse(multi_user=False)

    token = os.environ.get(TOKEN_VARIABLE, "").strip() or None
    token_file = Path(os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH)
    projected = ServiceAccountTokenVolumeCredentials() if token_file.is_file() and not token else None
    with warnings.catch_warnings(action="ignore"):
        return QuietClient(
            host=host or None,
            existing_token=token,
            credentials=projected,
            ssl_ca_cert=ca_certificate or None,
        )


def _call_once(function: Callable[..., T], patience: Patience, **arguments: Any) -> T:
    try:
        answer = function(**arguments, _request_timeout=(_CONNECT_SECONDS, patience.answer_seconds))
    except AttributeError as error:
        # The API client trips over an error without a body, as every failure of TLS is.
        if type(error.__context__).__name__ == "ApiException":
            raise error.__context__ from None  # type: ignore[misc]
        raise
    response = function.__self__.api_client.last_response  # type: ignore[attr-defined]
    if "json" not in (response.getheader("content-type") or ""):
        # A login page is a 200 too, which the API client takes for an empty answer.
        raise NotTheApiError
    return answer
