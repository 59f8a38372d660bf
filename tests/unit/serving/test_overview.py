"""A status is made of what every replica says, also while one of them cannot say anything."""

import asyncio
from types import SimpleNamespace

from ray.serve.handle import DeploymentBroadcastResponse

from serving.config import AppSettings
from serving.overview import answered, ask, troubles


class Replica:
    """In place of a call under way, as Ray's own collector of replies waits for it."""

    def __init__(self, reply):
        self._reply = reply

    async def get_async(self):
        if isinstance(self._reply, Exception):
            raise self._reply
        return self._reply


def asked(*replies):
    async def calls():
        return [Replica(reply) for reply in replies]

    return asyncio.run(ask(SimpleNamespace(broadcast=lambda _method: DeploymentBroadcastResponse(calls(), None))))


def test_a_replica_that_fails_is_named_and_leaves_out_only_itself():
    well = [{"replica": number, "troubles": []} for number in range(2)]
    gateways = asked(well[1], RuntimeError("Traceback:\n  ...\nThe actor died"), well[0])
    assert answered(gateways) == well
    settings = AppSettings(trainer={"enabled": False})
    assert troubles(settings, gateways, well, well, []) == ["a Gateway does not answer: The actor died"]
    nobody = asked(RuntimeError("gone"))
    assert troubles(settings, nobody, well, well, []) == ["no Gateway answers", "a Gateway does not answer: gone"]


def test_a_trainer_that_fails_says_why():
    settings, well = AppSettings(trainer={"enabled": True}), [{"replica": 0, "troubles": []}]
    said = troubles(settings, well, well, well, asked(RuntimeError("Traceback:\n  ...\nout of memory")))
    assert said == ["the Trainer does not answer: out of memory"]
    assert troubles(settings, well, well, well, []) == ["the Trainer does not answer"]
