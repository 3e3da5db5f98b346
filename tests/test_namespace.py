"""Two models in one process, each with modules of its own, whatever they are called and however they are imported."""

import os
import pickle
import sys
import sysconfig
import textwrap
import threading
import weakref
from pathlib import Path

import numpy
import pytest

from container import namespace as module
from container.namespace import Namespace

DEADLINE = 10

# From Python 3.12 on a fork beside threads warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@pytest.fixture
def make(tmp_path):
    """Namespace and script of an artifact, from a dict of its files below code/. Asserts that sys.path and sys.modules are as before."""
    path, modules = list(sys.path), dict(sys.modules)

    def make(name, **files):
        code = tmp_path / name / "code"
        for file, source in files.items():
            target = code / file.replace("__slash__", "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(textwrap.dedent(source))
        return Namespace((code, code / "lib")), code / "inference.py"

    yield make
    assert sys.path == path
    assert {name for name in set(sys.modules) - set(modules) if str(tmp_path) in str(getattr(sys.modules[name], "__file__", ""))} == set()
    assert [name for name, there in modules.items() if sys.modules.get(name) is not there] == []


def files(**sources):
    """Files by their paths, as keywords: a slash is written as two underscores, the ending .py is left out."""
    return {f"{path.replace('__', '/').replace('/init', '/__init__')}.py".replace("/", "__slash__"): text for path, text in sources.items()}


CASES = {
    "at the top": files(inference="import helper\ndef answer(): return helper.WHO", helper="WHO = {!r}"),
    "a name of it": files(inference="from helper import who\ndef answer(): return who()", helper="def who(): return {!r}"),
    "all names": files(inference="from helper import *\ndef answer(): return WHO", helper="WHO = {!r}"),
    "inside a function": files(inference="def answer():\n    import helper\n    return helper.WHO", helper="WHO = {!r}"),
    "inside a helper's function": files(
        inference="import helper\ndef answer(): return helper.who()",
        helper="def who():\n    from other import WHO\n    return WHO",
        other="WHO = {!r}",
    ),
    "a package": files(
        inference="import pack.deep.who\ndef answer(): return pack.deep.who.WHO",
        pack__init="",
        pack__deep__init="",
        pack__deep__who="WHO = {!r}",
    ),
    "as another name": files(inference="import pack.who as w\ndef answer(): return w.WHO", pack__init="", pack__who="WHO = {!r}"),
    "a directory without __init__": files(inference="from pack import who\ndef answer(): return who.WHO", pack__who="WHO = {!r}"),
    "relative": files(
        inference="import pack\ndef answer(): return pack.who()",
        pack__init="from .inner import who",
        pack__inner="from . import data\nfrom .data import WHO\ndef who():\n    from .data import WHO as late\n    return late",
        pack__data="WHO = {!r}",
    ),
    "__all__ of a package": files(
        inference="from pack import *\ndef answer(): return who.WHO", pack__init="__all__ = ['who']", pack__who="WHO = {!r}"
    ),
    "in a circle": files(
        inference="import one\ndef answer(): return one.who()",
        one="import two\nWHO = {!r}\ndef who(): return two.who()",
        two="import one\ndef who(): return one.WHO",
    ),
    "of lib": files(inference="import vendored\ndef answer(): return vendored.WHO", lib__vendored="WHO = {!r}"),
    "by importlib, while it loads": files(
        inference="import importlib\nhelper = importlib.import_module('helper')\ndef answer(): return helper.WHO", helper="WHO = {!r}"
    ),
    "with a name of the standard library": files(inference="import colorsys\ndef answer(): return colorsys.WHO", colorsys="WHO = {!r}"),
    "from a directory that the script has put on the path": files(
        inference="""
            import os, sys
            sys.path.insert(0, os.path.dirname(__file__))
            sys.path.insert(0, os.path.join(os.path.dirname(__file__), "own"))
            import helper
            def answer(): return helper.WHO
        """,
        own__helper="WHO = {!r}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_model_meets_its_own(make, case):
    both = {}
    for who in ("first", "second"):
        space, script = make(who, **{path: textwrap.dedent(source).replace("{!r}", repr(who)) for path, source in CASES[case].items()})
        both[who] = space.run(script)
    for _ in range(2):
        assert {who: script.answer() for who, script in both.items()} == {"first": "first", "second": "second"}


PICKLED = {
    "imported by the script before": "import helper\n",
    "imported by the pickle alone": "",
    "imported by the script in a function": "",
}


@pytest.mark.parametrize("case", PICKLED)
def test_a_pickled_class_is_the_very_class_that_the_script_means(make, case):
    loads = (
        "    import helper\n    model = pickle.loads(b'{pickled}')\n"
        if case.endswith("function")
        else "    model = pickle.loads(b'{pickled}')\n"
    )
    source = (
        f"import pickle\n{PICKLED[case]}def load():\n{loads}    from helper import Model\n    return type(model) is Model and model.who()\n"
    )
    pickled = "chelper\\nModel\\n(tR."
    for who in ("first", "second"):
        helper = f"class Model:\n    def who(self):\n        return {who!r}\n"
        space, path = make(who, **files(inference=source.replace("{pickled}", pickled), helper=helper))
        script = space.run(path)
        with space.exposed():
            assert script.load() == who


def test_a_pickle_can_be_written_where_the_modules_are_exposed(make):
    space, path = make("one", **files(inference="from helper import Model\nmodel = Model()", helper="class Model: pass"))
    script = space.run(path)
    with space.exposed():
        again = pickle.loads(pickle.dumps(script.model))
    assert type(again) is type(script.model)
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(script.model)


def test_another_models_module_is_not_there(make):
    space, path = make("first", **files(inference="import sys, os\nsys.path.append(os.path.dirname(__file__))\nimport helper", helper=""))
    space.run(path)
    other, path = make("second", **files(inference="import helper"))
    with pytest.raises(ModuleNotFoundError, match="No module named 'helper'"):
        other.run(path)


@pytest.mark.parametrize(
    ("inference", "error", "said"),
    [
        ("import nowhere", ModuleNotFoundError, "No module named 'nowhere'"),
        ("import pack.nowhere", ModuleNotFoundError, r"No module named 'pack\.nowhere'"),
        ("from pack import nowhere", ImportError, "cannot import name 'nowhere' from 'pack'"),
        ("from . import pack", ImportError, "no package specified"),
        ("import broken", ZeroDivisionError, "division by zero"),
        ("import wrong", SyntaxError, "invalid syntax"),
    ],
)
def test_an_import_that_fails_fails_as_ever_and_leaves_nothing(make, inference, error, said):
    space, path = make("one", **files(inference=inference, pack__init="", broken="1 / 0", wrong="def"))
    for _ in range(2):
        with pytest.raises(error, match=said):
            space.run(path)


def test_what_the_image_has_is_shared(make):
    first, second = (make(who, **files(inference="import json, os.path, collections.abc as abc"))[0] for who in ("first", "second"))
    scripts = [space.run(Path(space._path[0]) / "inference.py") for space in (first, second)]
    assert scripts[0].json is scripts[1].json is sys.modules["json"]
    assert scripts[0].os is os


def test_a_mere_directory_does_not_hide_a_package_of_the_image(make):
    space, path = make("one", **files(inference="import json\ndef answer(): return json.dumps([1])", json__data="", lib__json__more=""))
    assert space.run(path).answer() == "[1]"


def test_a_compiled_package_of_the_image_has_the_better_right_even_if_nobody_has_imported_it(make, tmp_path, monkeypatch):
    (tmp_path / "image/both").mkdir(parents=True)
    (tmp_path / "image/both/__init__.py").write_text("WHO = 'image'")
    monkeypatch.syspath_prepend(tmp_path / "image")
    sources = files(inference="import both\nfrom both import WHO", lib__both__init="raise ImportError('it was loaded twice')")
    space, path = make("one", **sources)
    (tmp_path / "one/code/lib/both/core.so").write_bytes(b"")
    assert space.run(path).WHO == "image"
    assert sys.modules.pop("both").WHO == "image"
    monkeypatch.undo()


def test_a_pure_package_of_the_models_own_has_it_else(make):
    space, path = make("one", **files(inference="import numpy", lib__numpy__init="WHO = 'own'"))
    assert space.run(path).numpy.WHO == "own"
    assert not hasattr(numpy, "WHO")


def test_a_compiled_module_of_a_package_of_its_own(make, tmp_path):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    compiled = next((found for entry in sys.path for found in Path(entry).glob(f"_json*{suffix}")), None)
    if compiled is None:
        pytest.skip("this Python has no compiled _json to copy")
    space, path = make(
        "one",
        **files(
            inference="import pack\nfrom pack import _json\nanswer = pack.made",
            lib__pack__init="from . import _json\nmade = _json.make_encoder",
        ),
    )
    (tmp_path / f"one/code/lib/pack/_json{suffix}").write_bytes(compiled.read_bytes())
    assert callable(space.run(path).answer)
    space.close()


def test_a_helper_that_has_the_name_of_a_global_module_hides_it_only_while_it_loads(make, monkeypatch):
    there = type(sys)("helper")
    monkeypatch.setitem(sys.modules, "helper", there)
    space, path = make("one", **files(inference="import helper\ndef answer(): return helper.WHO", helper="WHO = 'own'"))
    script = space.run(path)
    assert sys.modules["helper"] is there
    with space.exposed():
        assert sys.modules["helper"].WHO == "own"
    assert sys.modules["helper"] is there
    assert script.answer() == "own"
    monkeypatch.undo()
    sys.modules.pop("helper", None)


@pytest.mark.parametrize("spoil", ["sys.path.clear()", "sys.path.pop(0)", "sys.path[:] = sys.path[1:]"])
def test_a_script_that_spoils_the_path_spoils_it_for_itself(make, spoil):
    path_before = list(sys.path)
    space, path = make("one", **files(inference=f"import sys\n{spoil}\n"))
    space.run(path)
    sys.path[:] = path_before  # what it takes away from the image's own it takes away, as it would alone


def test_at_the_end_nothing_holds_what_the_modules_held(make):
    space, path = make(
        "one", **files(inference="import helper\nclass Big: pass\nBIG = Big()\ndef predict(): return BIG", helper="import inference")
    )
    script = space.run(path)
    trace = weakref.ref(script.BIG)
    space.close()
    del script
    assert trace() is None, "no collector was needed"


def test_a_process_that_is_forked_while_another_model_loads_can_load_in_its_turn():
    """What would be held for ever in the child is not held there: a fork waits for it."""
    loading, go_on = threading.Event(), threading.Event()

    def load():
        with module._exposing:
            loading.set()
            assert go_on.wait(DEADLINE)

    other = threading.Thread(target=load)
    other.start()
    assert loading.wait(DEADLINE)
    threading.Timer(0.05, go_on.set).start()
    child = os.fork()
    if child == 0:
        other_thread = threading.Thread(target=lambda: os._exit(0 if module._exposing.acquire(timeout=DEADLINE) else 1))
        other_thread.start()
        other_thread.join()
        os._exit(2)
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
