"""Whom the device obeys: another director is looked up, and nobody makes the device ask without end."""

from __future__ import annotations

import asyncio

from securesystemslib.signer import CryptoSigner

from interlock_agent import link as links
from tests.agent.test_link import OTHER_KEY, World, desired


def test_an_unknown_key_is_looked_up_once() -> None:
    world = World()
    world.knows(OTHER_KEY)

    async def story() -> None:
        await world.link.message("desired", desired(5))
        assert world.fetcher.refreshes == 1
        assert len(world.engine.orders) == 1
        for counter in range(6, 60):
            await world.link.message("desired", desired(counter, key=OTHER_KEY))
        assert world.fetcher.refreshes == 1, "a flood is not answered with a flood"
        await asyncio.sleep(links.ASK_AGAIN_S)
        await world.link.message("desired", desired(6, key=OTHER_KEY))
        assert world.fetcher.refreshes == 2
        await world.link.message("desired", desired(6, key=OTHER_KEY))
        assert world.fetcher.refreshes == 2
        assert len(world.engine.orders) == 1
        assert world.link.refusals == {"desired:bad_signature": 56}

    world.run(story())
    assert world.refused() == ["bad_signature"]


def test_a_rotated_director_is_found_by_asking_while_the_broker_floods() -> None:
    world = World()
    world.knows()

    async def story() -> None:
        await world.link.message("desired", desired(9))
        world.fetcher.key, world.fetcher.epoch = OTHER_KEY, 2
        thief = CryptoSigner.generate_ed25519()
        await world.link.message("desired", desired(10, key=thief))
        world.knows()  # the metadata had not moved yet
        await world.link.message("desired", desired(1, epoch=2, key=OTHER_KEY))
        assert world.journal.memory.meta["desired_at"] == [1, 9]
        await world.link.desired(desired(1, epoch=2, key=OTHER_KEY), asked=True)
        assert world.journal.memory.meta["desired_at"] == [2, 1], "the epoch begins again"
        await world.link.message("desired", desired(11))
        assert world.journal.memory.meta["desired_at"] == [2, 1]

    world.run(story())


def test_what_was_refused_unseen_is_asked_for_and_a_flood_of_it_once_a_minute() -> None:
    world = World()
    world.knows()

    async def story() -> None:
        running = asyncio.create_task(world.link.run())
        await asyncio.sleep(1)
        polled = world.fetcher.polled
        thief = CryptoSigner.generate_ed25519()
        await world.link.message("desired", desired(10, key=thief))
        world.knows()
        world.fetcher.key, world.fetcher.epoch = OTHER_KEY, 2
        world.fetcher.document = desired(1, epoch=2, key=OTHER_KEY)
        for _ in range(20):
            await world.link.message("desired", world.fetcher.document)
        assert world.engine.orders == []
        await asyncio.sleep(links.ASK_AGAIN_S + 1)
        assert (len(world.engine.orders), world.fetcher.polled - polled) == (1, 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    world.run(story())
