"""More models than fit into a container's memory, asked for as the platform would: what clients see of that, and of shards that are killed.

`python -m benchmarks.many_faults` does the same with 200 models and 5,000 requests.
"""

import pytest

from tests.live import zipf
from tests.live.conftest import LABEL
from tests.live.launcher import Launcher

pytestmark = [pytest.mark.live, pytest.mark.docker]

CLIENTS = 4
MEMORY, REQUESTS = "640m", 400
"""Room for about twenty of the models, besides the server itself."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return zipf.Fleet.write(tmp_path_factory.mktemp("artifacts"), 60, seed=1)


@pytest.fixture
def launch(image):
    with Launcher(image, LABEL) as launcher:
        yield launcher


def test_what_does_not_fit_makes_room_and_no_client_sees_it(launch, fleet):
    with zipf.container(launch, MEMORY, fleet) as (server, endpoint):
        shards = server.pids("worker")
        outcomes = fleet.drive(endpoint, fleet.requests(REQUESTS, seed=2), CLIENTS)
        assert zipf.wrong(outcomes) == []
        assert zipf.statuses(outcomes) == {200: REQUESTS}
        assert endpoint.calls["load", 507] > 20, "not all fit"
        assert zipf.wrong_afterwards(fleet, endpoint) == []
        assert server.pids("worker") == shards


def test_killed_shards_cost_the_requests_that_they_have_and_no_more(launch, fleet):
    outcomes = list[zipf.Outcome]()
    with zipf.container(launch, MEMORY, fleet) as (server, endpoint):
        with zipf.killing(server, every=1) as killed:
            for seed in range(30):
                outcomes += fleet.drive(endpoint, fleet.requests(100, seed), CLIENTS)
                if len(killed) >= 3:
                    break
        assert len(killed) >= 3
        assert zipf.wrong(outcomes) == []
        assert sum(outcome.status != 200 for outcome in outcomes) <= zipf.most_failures(len(killed), CLIENTS)
        assert zipf.wrong_afterwards(fleet, endpoint) == []
        assert zipf.gone(server) == len(killed), "and no shard has died of anything else"
