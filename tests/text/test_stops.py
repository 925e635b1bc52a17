"""Stop strings are found however the text arrives, and nothing of them is shown."""

from hypothesis import example, given
from hypothesis import strategies as st

from ollama_zmq.text.stops import StopStrings

arrivals = st.lists(st.text(alphabet="ab", max_size=2), max_size=12)
stop_lists = st.lists(st.text(alphabet="ab", max_size=4), max_size=3)


def pushed(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    watch = StopStrings(stops)
    shown = "".join([*map(watch.push, pieces), watch.finish()])
    return shown, watch.matched


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """Read letter by letter: the first time the text ends with a stop string, the longest such ends it."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@example(stops=["ab"], pieces=["a", "b"])
@example(stops=["aab"], pieces=["aa", "ab"])
@example(stops=["b", "ab", "a"], pieces=["bb"])
@example(stops=["a", "b"], pieces=["ab"])
@example(stops=["b", "ab"], pieces=["ab"])
@example(stops=["aba", "bb"], pieces=["ab", "bb"])
@given(stops=stop_lists, pieces=arrivals)
def test_the_borders_between_pieces_change_nothing(stops: list[str], pieces: list[str]) -> None:
    assert pushed(stops, pieces) == expected(stops, "".join(pieces))


@given(stops=stop_lists, pieces=arrivals)
def test_only_what_may_begin_a_stop_string_is_held_back(stops: list[str], pieces: list[str]) -> None:
    watch, arrived, shown = StopStrings(stops), "", ""
    for piece in pieces:
        arrived += piece
        shown += watch.push(piece)
        if watch.matched is None:
            held = arrived[len(shown) :]
            assert arrived.startswith(shown)
            assert not held or any(stop.startswith(held) for stop in stops)


@given(stops=stop_lists, pieces=st.lists(st.tuples(st.text(alphabet="ab", max_size=2), st.booleans()), max_size=12))
def test_hidden_text_stops_like_any_other_and_is_never_shown(stops: list[str], pieces: list[tuple[str, bool]]) -> None:
    watch = StopStrings(stops)
    shown = "".join([*(watch.push(text, hidden=hidden) for text, hidden in pieces), watch.finish()])
    text, matched = expected(stops, "".join(text for text, _ in pieces))
    seen = [not hidden for text, hidden in pieces for _ in text]
    assert (shown, watch.matched) == ("".join(c for c, is_seen in zip(text, seen, strict=False) if is_seen), matched)


def test_nothing_is_shown_after_a_stop_string() -> None:
    watch = StopStrings(["</s>"])
    assert [watch.push("yes</"), watch.push("s>no"), watch.push("more"), watch.finish()] == ["yes", "", "", ""]


def test_an_empty_stop_string_stops_nothing() -> None:
    assert pushed([""], ["a", "b"]) == ("ab", None)
