"""A program for Flyte's SDK: its actions fan out, are retried, fail, and wait for a signal."""

import asyncio
import os

import flyte
import flyte.errors

env = flyte.TaskEnvironment(name="demo")


@flyte.trace
async def half(number: int) -> int:
    """A step that is remembered, so that a restarted parent does not do it again."""
    return number // 2


@env.task
async def square(number: int) -> int:
    return number * number


@env.task
async def sum_of_squares(numbers: list[int]) -> int:
    """Fans out: each square is an action of its own."""
    return sum(await asyncio.gather(*(square(number) for number in numbers)))


@env.task
async def cube(number: int) -> int:
    """One of a map: its actions are a group."""
    print(f"the cube of {number} is {number**3}")
    return number**3


@env.task
async def summarise_the_measurements_of_all_stations_of_the_northern_network(total: int) -> str:
    """Has a name that is longer than a column, and writes lines for a reader of its log."""
    for line in range(1, 11):
        print(f"step {line} of 10")
        await asyncio.sleep(0.1)
    return f"total {total}"


@env.task(retries=2)
async def flaky() -> int:
    """Fails at first, and is retried."""
    attempt = int(os.environ["FLYTE_ATTEMPT_NUMBER"])
    if attempt == 0:
        raise flyte.errors.RuntimeSystemError("Weather", "it rained")
    return attempt


@env.task
async def broken() -> int:
    raise ValueError("this one never works")


@env.task
async def main(count: int = 4) -> str:
    total = await sum_of_squares(list(range(1, count + 1)))
    cubes = sum([each async for each in flyte.map.aio(cube, range(count), group_name="cubes")])
    await summarise_the_measurements_of_all_stations_of_the_northern_network(cubes)
    tries = await flaky()
    try:
        await broken()
    except flyte.errors.RuntimeUserError as error:
        caught = error.code
    else:
        caught = "nothing"
    middle = await half(total)
    approval = await flyte.new_condition.aio("approve", data_type=bool)
    approved = await approval.wait.aio()
    return (
        f"squares {total}, cubes {cubes}, half {middle}, retries {tries}, caught {caught}, "
        f"approved {approved}"
    )
