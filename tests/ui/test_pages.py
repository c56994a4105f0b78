"""The pages as Airflow's own API server serves them, over a store that was written as a pipeline's runs write it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.dag import DagTag
from airflow.utils.session import create_session
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import delete

from airflow_mlops.call import Store
from airflow_mlops.registry.requests import Request, Requests
from airflow_mlops.spec.google import STORE_TAG
from airflow_mlops.ui.plugin import pages
from tests.loopback.rest import RestService
from tests.ui.made import MLFLOW, REPORT, RULES, asked, decided, history, judged, validated

SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp;\"'"


class ByDag(SimpleAuthManager):
    """Airflow's simple auth manager, with viewers who may read one DAG only: the one that they are named after."""

    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        if user.role == "viewer":
            return details is not None and details.id == user.username
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)


@pytest.fixture(scope="module")
def airflow_app(airflow_home: Path) -> Iterator[Any]:
    """Airflow's API server, which finds the plugin by its entry point."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", f"{__name__}.{ByDag.__name__}")
        purge_cached_app()
        yield create_app(apps="core")
        purge_cached_app()


@pytest.fixture
def store(airflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The configured store, in an Airflow where no DAG of another test names a store of its own."""
    with create_session() as session:
        session.execute(delete(DagTag).where(DagTag.name.startswith(STORE_TAG)))
    root = str(tmp_path / "store")
    monkeypatch.setenv("AIRFLOW__AIRFLOW_MLOPS__STORE", root)
    monkeypatch.delenv("AIRFLOW_CONN_MLFLOW_DEFAULT", raising=False)
    return Store(root)


class Browser:
    """What a user sees."""

    def __init__(self, app: Any, role: str | None, name: str = "somebody") -> None:
        from airflow.api_fastapi.app import get_auth_manager

        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role))
        self.client = TestClient(app, headers={"Authorization": f"Bearer {token}"})

    def get(self, path: str, status: int = 200) -> str:
        answer = self.client.get(f"/mlops{path}")
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"].startswith("text/html")
        return answer.text

    def text(self, path: str, status: int = 200) -> str:
        """What is to be read on a page, without its markup."""
        body = self.get(path, status).partition("<body>")[2]
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture
def admin(airflow_app: Any) -> Browser:
    return Browser(airflow_app, "admin")


def test_an_empty_store_says_what_to_do(store: Store, admin: Browser) -> None:
    assert "No model yet" in admin.text("/")


def test_the_list_tells_how_every_model_stands(store: Store, admin: Browser) -> None:
    history(store, "toy")
    asked(store, "toy", "2024-04")
    decided(store, "other", "rejection", "7", "roc_auc 0.5100 is below 0.55")
    text = admin.text("/")
    assert "Version 2 since" in text and "Version 1" in text
    assert "version 2: champion 1 → 2" in text
    assert "roc_auc 0.7440 against 0.6770 of champion 1" in text
    assert "drift 2024-03" in text and "1 waiting" in text
    assert "version 7 was turned away: there is no champion still roc_auc 0.5100 is below 0.55" in text


def test_the_timeline_merges_verdicts_requests_and_the_ledger_newest_window_first(store: Store, admin: Browser) -> None:
    request = history(store, "toy")
    text = admin.text("/models/toy").partition("Timeline")[2]
    told = (
        *("2024-03", "drift", "1,234 rows against the reference of champion 1", "x1 moved by 2.00 standard deviations"),
        *("retrain request: answered", f"request {request.id}", "version 2 was promoted"),
        *("promotion", "version 2", "roc_auc 0.7440 against 0.6770 of champion 1", f"answers request {request.id}"),
        *("2024-02", "no drift", "none of 2 columns moved"),
        *("2024-01", "promotion", "version 1", "there is no champion yet"),
    )
    places = [text.find(each) for each in told]
    assert -1 not in places
    assert [text.index(each, places[0]) for each in told if each not in ("drift", "promotion")] == sorted(
        place for each, place in zip(told, places, strict=True) if each not in ("drift", "promotion")
    )


def test_each_sensor_is_read_by_itself(store: Store, admin: Browser) -> None:
    """A quiet verdict of one sensor hides no alarm of another, nor do newer windows an older one that labels judge."""
    decided(store, "toy", "promotion", "1")
    judged(store, "toy", "2024-03", "drift")
    judged(store, "toy", "2024-03", "ok", "prediction_verdicts", sensor="prediction_drift")
    lost = "roc_auc is 0.6000 on 400 labels of 500 predictions, and was 0.8000 at promotion"
    judged(store, "toy", "2024-02", "drift", "performance_verdicts", sensor="performance", reasons=[lost], columns=[])
    for path in ("/", "/models/toy"):
        text = admin.text(path).partition("Timeline")[0]
        assert "drift 2024-03 no drift of predictions 2024-03 performance dropped 2024-02" in text
    text = admin.text("/models/toy").partition("Timeline")[2]
    for told in (
        "1,234 rows against the reference of champion 1",
        "1,234 predictions against the reference of champion 1",
        "1,234 labels against the promotion of champion 1",
        lost,
    ):
        assert told in text
    # More labels are waited for.
    judged(store, "toy", "2024-03", "insufficient_data", "open_verdicts", sensor="performance", columns=[])
    assert "too few labels 2024-03" in admin.text("/")


def test_the_links_lead_to_mlflow_and_to_airflow(store: Store, admin: Browser) -> None:
    decided(store, "toy", "promotion", "1", run="toy.train/manual__2024-01-01T00:00:00+00:00")
    judged(store, "toy", "2024-02", "drift")
    page = admin.get("/models/toy")
    assert f'<a href="{REPORT}" class="out" target="_blank" rel="noopener noreferrer">Drift report</a>' in page
    assert f'href="{MLFLOW}/#/models/toy/versions/1"' in page
    run = "/dags/toy.train/runs/manual__2024-01-01T00%3A00%3A00%2B00%3A00"
    assert f'<a href="{run}" target="_top">Airflow run</a>' in page


def test_the_links_follow_a_base_url_with_a_path(store: Store, admin: Browser) -> None:
    decided(store, "toy", "promotion", "1")
    behind = FastAPI(root_path="/airflow")
    behind.mount("/mlops", pages)
    token = admin.client.headers["Authorization"]
    page = TestClient(behind, headers={"Authorization": token}).get("/airflow/mlops/models/toy").text
    assert 'href="/airflow/mlops/"' in page and 'href="/airflow/dags/toy.train/runs/manual__1"' in page


def test_without_a_verdict_the_connection_tells_where_mlflow_is(
    store: Store, admin: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(store, "toy", "promotion", "1")
    assert "/#/models/" not in admin.get("/models/toy")
    connection = {"conn_type": "mlflow", "host": "http://inside:5000", "extra": {"ui_url": "https://mlflow.example/"}}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(connection))
    assert 'href="https://mlflow.example/#/models/toy/versions/1"' in admin.get("/models/toy")


@pytest.mark.parametrize("path", ["/", "/models/toy", "/dags/toy.train"])
def test_whatever_the_store_holds_is_shown_as_text(store: Store, admin: Browser, path: str) -> None:
    decided(store, "toy", "promotion", "1", SCRIPT, window="2024-01")
    asked(store, "toy", "2024-02", SCRIPT)
    judged(store, "toy", "2024-02", SCRIPT, columns=[{"column": "x", "word": "moved", "note": SCRIPT}])
    page = admin.get(path)
    assert "<script>" not in page and "<img" not in page and page.count("<script") == 1
    assert SCRIPT in unescape(page)


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "data:text/html,x", "//evil", "http://u:p@h/#/x", "http://[", 3]
)
def test_an_address_that_is_no_web_page_is_no_link(store: Store, admin: Browser, address: object) -> None:
    decided(store, "toy", "promotion", "1")
    judged(store, "toy", "2024-02", "drift", report_url=address, mlflow_url=address)
    page = admin.get("/models/toy")
    assert "Drift report" not in page and "MLflow run" not in page and "Version 1</a>" not in page


def test_a_page_can_run_no_script_but_its_own(store: Store, admin: Browser) -> None:
    first, second = (admin.client.get("/mlops/") for _ in range(2))
    policy = first.headers["content-security-policy"]
    (nonce,) = set(re.findall(r"'nonce-([\w-]+)'", policy))
    assert "default-src 'none'" in policy and "frame-ancestors 'self'" in policy and "unsafe" not in policy
    assert first.text.count(f'nonce="{nonce}"') == 2 and nonce not in second.text


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "%2e%2e",
        "..%2f..%2fsecret",
        "..%2fledger%2ftoy",
        "toy%2f..%2ftoy",
        "toy%00",
        "%2fetc%2fpasswd",
        "TOY",
    ],
)
def test_only_a_model_of_the_store_has_a_page(store: Store, admin: Browser, name: str, tmp_path: Path) -> None:
    decided(store, "toy", "promotion", "1")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "00000001.json").write_text('{"secret": "secret"}')
    answer = admin.client.get(f"/mlops/models/{name}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/", "/models/toy"])
def test_a_page_can_be_read_aloud(store: Store, admin: Browser, path: str) -> None:
    history(store, "toy")
    page = admin.get(path)
    assert '<html lang="en">' in page and re.search("<title>[^<]+</title>", page) and page.count("<h1>") == 1
    assert page.count("<th ") == len(re.findall(r'<th scope="(?:col|row|rowgroup)" role="(?:column|row)header"', page))


@pytest.mark.parametrize("path", ["/", "/models/toy", "/dags/toy.train", "/nothing"])
def test_who_is_not_logged_in_sees_nothing(store: Store, airflow_app: Any, path: str) -> None:
    history(store, "toy")
    answer = TestClient(airflow_app).get(f"/mlops{path}")
    assert answer.status_code == (404 if path == "/nothing" else 401)
    assert "toy" not in answer.text
    wrong = TestClient(airflow_app, headers={"Authorization": "Bearer x.y.z"}).get("/mlops/")
    assert wrong.status_code in (401, 403)


@pytest.mark.parametrize("dag_id", ["toy.train", "toy.monitor", "toy", "by_hand"])
def test_who_may_read_one_dag_sees_its_model_and_no_other(store: Store, airflow_app: Any, dag_id: str) -> None:
    decided(store, "toy", "promotion", "1", run="by_hand/manual__1")
    history(store, "other")
    viewer = Browser(airflow_app, "viewer", dag_id)
    text = viewer.text("/")
    assert "toy" in text and "other" not in text
    viewer.get("/models/toy")
    viewer.get("/models/other", 404)
    viewer.get(f"/dags/{dag_id}")
    viewer.get("/dags/other.train", 404)


def test_who_may_read_no_dag_sees_no_model(store: Store, airflow_app: Any) -> None:
    history(store, "toy")
    nobody = Browser(airflow_app, None)
    assert "toy" not in nobody.text("/")
    assert nobody.text("/models/toy", 404) == nobody.text("/models/nothing", 404)


def test_a_dags_tab_shows_its_model(store: Store, admin: Browser) -> None:
    history(store, "toy")
    decided(store, "other", "promotion", "1", run="by_hand/manual__1")
    for dag_id, model in (("toy.train", "toy"), ("toy.predict", "toy"), ("by_hand", "other")):
        assert f"<h1>{model}</h1>" in admin.get(f"/dags/{dag_id}")
    assert "No model yet" in admin.text("/dags/unrelated")


def test_a_broken_file_hides_its_own_model_only(store: Store, admin: Browser, airflow_app: Any) -> None:
    history(store, "toy")
    decided(store, "broken", "promotion", "1")
    Path(store.path, "ledger", "broken", "00000002.json").write_text("{")
    asked(store, "odd", "2024-01")
    next(Path(store.path, "requests", "odd").rglob("*.json")).write_text("{}")
    text = admin.text("/")
    assert "broken cannot be shown" in text and "odd cannot be shown" in text and "roc_auc 0.7440" in text
    assert "cannot be read" in admin.text("/models/broken", 503)
    assert "broken" not in Browser(airflow_app, "viewer", "toy.train").text("/")
    assert "<h1>toy</h1>" in admin.get("/dags/toy.train")


def test_requests_show_how_far_they_are(store: Store, admin: Browser) -> None:
    for number in range(3):
        asked(store, "toy", f"2024-0{number + 1}")
    requests = Requests(store, "toy")
    requests.claim("toy.train/manual__1", lambda run: True)
    requests.claim("toy.train/manual__2", lambda run: False)
    requests.open(Request(model="toy", champion=None, reason="another model was promoted", trigger="model"))
    text = admin.text("/models/toy")
    assert "1 waiting, 3 in training" in text
    assert "retrain request: in training" in text and "taken 2 times" in text
    assert "no window" in text and "another model was promoted" in text


def test_many_windows_are_told_on_several_pages(store: Store, admin: Browser) -> None:
    for year in range(2010, 2016):
        for number in range(1, 13):
            judged(store, "toy", f"{year}-{number:02}")
    first, second = admin.text("/models/toy"), admin.text("/models/toy?page=2")
    assert "2015-12" in first and "Page 1 of 2" in first and "2010-01" not in first.partition("Timeline")[2]
    assert "2010-01" in second and "Newer windows" in second and "Older windows" not in second
    assert "Page 2 of 2" in admin.text("/models/toy?page=99")
    assert "72" in admin.text("/")


def test_a_page_reads_each_file_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_mlops.ui.history import History, Snapshot

    history(store, "toy")
    read: list[tuple[str, ...]] = []
    plain = Store.read_json
    monkeypatch.setattr(Store, "read_json", lambda self, *parts: (read.append(parts), plain(self, *parts))[1])
    found = History(Snapshot(store.root), "toy")
    found.dags(), found.summary(), found.timeline()
    assert len(read) == len(set(read)) > 0


def test_airflow_lists_the_plugin_without_errors(airflow_app: Any, admin: Browser) -> None:
    (plugin,) = [
        each for each in admin.client.get("/api/v2/plugins").json()["plugins"] if each["name"] == "airflow_mlops"
    ]
    places = {(view["destination"], view["href"]) for view in plugin["external_views"]}
    assert places == {("nav", "mlops/"), ("dag", "mlops/dags/{DAG_ID}")}
    assert admin.client.get("/api/v2/plugins/importErrors").json()["import_errors"] == []


def test_the_plugin_brings_what_forked_workers_share_and_no_pages() -> None:
    code = (
        "import sys, airflow.plugins_manager; before = set(sys.modules); "
        "import airflow_mlops.ui.plugin; "
        "found = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "heavy = {'numpy', 'pandas', 'pyarrow', 'mlflow', 'sklearn', 'fastapi', 'jinja2'}; "
        "print(sorted(found & heavy), 'airflow_mlops.ui.pages' in sys.modules, 'airflow_mlops.spec' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.stdout.strip() == "[] False True"


def test_a_version_s_model_card_is_one_click_away(admin: Browser, store: Store) -> None:
    card = f"{MLFLOW}/#/experiments/1/runs/abc/artifacts/model_card.html"
    decided(store, "toy", "promotion", "1", "it is the first", card=card)
    decided(store, "toy", "rejection", "2", "it is worse", card="javascript:alert(1)")
    link = f'<a href="{card}" class="out" target="_blank" rel="noopener noreferrer">Model card</a>'
    assert admin.get("/").count(link) == 1
    page = admin.get("/models/toy")
    assert page.count(link) == 2
    assert page.count("Model card") == 2 and "javascript" not in page


def test_a_validation_s_page_tells_what_was_found_worst_first(store: Store, admin: Browser) -> None:
    path = f"/dags/toy.train/validations/{validated(store, 'toy.train/manual__1')}"
    answer = admin.client.get(f"/mlops{path}")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script" not in policy and "frame-ancestors 'self'" in policy
    text = admin.text(path)
    told = (
        *(
            "Validation of toy, window 2024-01",
            "rows set aside",
            "77 are set aside, and 323 go on.",
        ),
        *("What sets rows aside (2)", "'amount' goes down to -2.46886, below -2, in 7 rows", "(row 9);"),
        *("What warns (2)", "the column 'member' is not in the schema", "Columns (7)", "18 to 79 26 8.0%"),
        *("Rules that hold (19)", "the newest at is within 5d of the window's end"),
    )
    places = [text.find(part) for part in told]
    assert -1 not in places and places == sorted(places)


def test_a_validation_that_stopped_its_run_has_a_page_too(store: Store, admin: Browser) -> None:
    rules = {**RULES, "min_rows": 401, "quarantine": {"max_share": 0}}
    identity = validated(store, "toy.train/manual__1", rules)
    text = admin.text(f"/dags/toy.train/validations/{identity}")
    assert "stops the run" in text and "none goes on" in text and "fewer than the 401" in text


def test_who_may_not_read_the_dag_sees_no_validation(store: Store, airflow_app: Any) -> None:
    identity = validated(store, "toy.train/manual__1")
    path = f"/dags/toy.train/validations/{identity}"
    assert "amount" in Browser(airflow_app, "viewer", "toy.train").text(path)
    for viewer, asked_of in ((Browser(airflow_app, "viewer", "other"), path), (Browser(airflow_app, None), path)):
        assert "amount" not in viewer.text(asked_of, 404)
    # Through a DAG that they may read nobody sees another's.
    text = Browser(airflow_app, "viewer", "other").text(path.replace("toy.train", "other"), 404)
    assert "No validation report" in text and "amount" not in text
    assert TestClient(airflow_app).get(f"/mlops{path}").status_code == 401


@pytest.mark.parametrize("identity", ["0" * 32, "nonsense", "..%2f..%2fledger%2ftoy%2f00000001", "0" * 31 + "G"])
def test_a_validation_that_is_not_there_is_said(store: Store, admin: Browser, identity: str) -> None:
    decided(store, "toy", "promotion", "1")
    text = admin.text(f"/dags/toy.train/validations/{identity}", 404)
    assert "No validation report" in text or "There is no such page" in text


@pytest.fixture
def own_store(airflow_home: Path, gcs: str) -> Iterator[Store]:
    """The store that the pipeline ``kept`` declares for itself, as its DAGs' tag says."""
    from airflow.models.dag import DagModel, DagTag
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.merge(DagBundleModel(name="own-store"))
        session.flush()
        tag = DagTag(name=f"store:{gcs}/mlops", dag_id="kept.train")
        session.add(DagModel(dag_id="kept.train", bundle_name="own-store", tags=[tag]))
    yield Store(f"{gcs}/mlops")
    with create_session() as session:
        session.delete(session.get(DagModel, "kept.train"))


def test_a_store_that_a_pipeline_declares_for_itself_is_shown_beside_the_configured_one(
    store: Store, own_store: Store, admin: Browser, airflow_app: Any
) -> None:
    history(store, "toy")
    decided(own_store, "kept", "promotion", "4")
    decided(store, "kept", "promotion", "3")

    listed = admin.text("/")
    assert "toy" in listed and "kept" in listed and "Version 4 since" in listed
    assert "Version 3" not in listed, "what lies elsewhere of a pipeline is not its own"
    assert "version 4" in admin.text("/models/kept")
    assert "version 4" in admin.text("/dags/kept.train")
    assert "version 2" in admin.text("/dags/toy.train")
    identity = validated(own_store, "kept.train/manual__1")
    assert "<title>" in admin.get(f"/dags/kept.train/validations/{identity}")


def test_a_declared_store_that_cannot_be_read_is_told_to_those_whose_it_is(
    store: Store, own_store: Store, admin: Browser, airflow_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gcsfs

    decided(store, "toy", "promotion", "1")
    bucket = own_store.root.removeprefix("gs://").partition("/")[0]
    with RestService() as closed:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", closed.url)
        gcsfs.GCSFileSystem.clear_instance_cache()
        closed.fail("PERMISSION_DENIED", "you do not have storage.objects.list", times=99)
        told = admin.text("/")
        assert f"{bucket}/mlops cannot be shown" in told and "roles/storage.objectUser" in told
        assert "Version 1 since" in told
        assert bucket not in Browser(airflow_app, "viewer", "toy.train").get("/")
