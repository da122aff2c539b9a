"""The champion changes during two hundred questions: none fails, and each answer names the version that wrote it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle

from cs_pipeline_tests.support.serving import SURE, Serving, wait_for
from cs_pipeline_tests.support.versions import make_champion

AT_ONCE = 200


def is_champion(serving: Serving, version: int) -> bool:
    return bool(serving.get("/ready").json()["champion"] == version)


def test_no_question_fails_while_the_alias_moves_back_and_forth(serving: Serving) -> None:
    written = {name: serving.chat(SURE, model_name=name).json()["response"] for name in ("1", "2")}
    assert written["1"] != written["2"]
    swaps, by, all_inside = 0, set[str](), threading.Event()
    with (
        ThreadPoolExecutor(AT_ONCE + 50) as clients,
        serving.slowed("1", 0.02),
        serving.before_each_token("1", all_inside.wait),
    ):
        asked = [clients.submit(serving.chat, SURE) for _ in range(AT_ONCE + 50)]
        try:
            wait_for(lambda: serving.metric("cs_questions_inside") >= AT_ONCE)
        finally:
            all_inside.set()  # on a busy machine, the first batch would otherwise end before so many have arrived
        for version in cycle((2, 1)):
            make_champion(serving.lake, version)
            wait_for(partial(is_champion, serving, version))
            swaps += 1
            assert swaps < 200, f"only {by} answered"
            by = {answer.result().json()["model"] for answer in asked if answer.done()}
            if by == {"1", "2"} and all(answer.done() for answer in asked[: AT_ONCE + 50]):
                break
            if by != {"1", "2"}:
                asked.append(clients.submit(serving.chat, SURE))  # for this champion or the next
    answers = [answer.result() for answer in asked]
    assert {answer.status_code for answer in answers} == {200}
    bodies = [answer.json() for answer in answers]
    assert all(answer["response"] == written[answer["model"]] for answer in bodies)
    assert swaps >= 2
