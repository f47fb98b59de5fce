"""An experiment on the running server: everybody gets his arm, and is told so."""

from __future__ import annotations

from collections import Counter

from adapters.arms import Arm, draw

from served import Served, admin, chat, refused

ARMS = [Arm.of("control", "base", 1), Arm.of("warm", "pirate@1", 2)]
USERS = [f"tried-{number}" for number in range(20)]


def test_a_split_from_start_to_conclusion(served: Served) -> None:
    def asked(user: str, name: str | None = None) -> tuple[str, str | None, str]:
        """The version, the arm, the answer."""
        headers = {"X-User-Id": user, **({"X-Adapter-Id": name} if name else {})}
        answer = chat(served, served.server.admin_key, headers=headers)
        assert answer.status_code == 200, answer.text
        said: str = answer.json()["choices"][0]["message"]["content"]
        return answer.headers["X-Adapter-Id"], answer.headers.get("X-Experiment"), said

    for user in USERS:
        served.server.call("POST", "/admin/users", json={"id": user})
    arms = [{"name": a.name, "adapter": a.serves, "weight": a.weight} for a in ARMS]
    served.server.call("POST", "/admin/experiments", json={"id": "tone", "arms": arms})
    served.server.call("POST", "/admin/experiments/tone/users", json={"users": USERS})
    assert asked(USERS[0])[:2] == ("base", None)  # a draft decides nothing
    plain, pirate = (asked("nobody", name)[2] for name in ("base", "pirate@1"))
    assert plain != pirate

    served.server.call("POST", "/admin/experiments/tone/start")
    drawn = {user: draw("tone", ARMS, user).name for user in USERS}  # by another process
    assert len(Counter(drawn.values())) == 2
    for user in USERS:
        if drawn[user] == "control":
            assert asked(user) == ("base", "tone/control", plain)
        else:
            assert asked(user) == ("pirate@1", "tone/warm", pirate)
    warm = next(user for user in USERS if drawn[user] == "warm")
    assert asked(warm, "base") == ("base", None, plain)  # what he names comes first
    key = served.server.call("POST", f"/admin/users/{warm}/keys", json={})["key"]
    assert chat(served, key).headers["X-Experiment"] == "tone/warm"
    refused(chat(served, key, headers={"X-Adapter-Id": "pirate"}), 404, "model_not_found")

    served.server.call("POST", "/admin/experiments/tone/conclude", json={"winner": "warm"})
    control = next(user for user in USERS if drawn[user] == "control")
    assert asked(control) == ("pirate@1", None, pirate)
    assert admin(served, "DELETE", "/experiments/tone").status_code == 204
    assert asked(warm) == ("base", None, plain)
