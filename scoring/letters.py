"""Which option a response names, by the two rules that MMMU and MMMU-Pro publish.

Marks are tried in order; of several options with a mark, the last one in the response wins. If
there is no mark, and the response has more than five words, texts of options are looked for. Where
nothing is found the authors draw an option at random: here nothing is named, and the response is
wrong.
"""

from scoring.benchmark import LETTERS

ENDS = ",.!?;:'"  # stripped in this order, each once


def named_option(response: str, options: list[str], marks: list[str]) -> str | None:
    """The letter of the option that the response names.

    marks   how a letter may be marked, first the best: "({})" for (A), " {} " for A between spaces
    """
    letters = LETTERS[: len(options)]
    for mark in ENDS:
        response = response.strip(mark)
    response = f" {response} "

    for mark in marks:
        found = [letter for letter in letters if mark.format(letter) in response]
        if found:
            # Several without brackets are ordered by their place between spaces, whatever the mark.
            place = mark if mark == "({})" else " {} "
            return max(found, key=lambda letter: response.rfind(place.format(letter)))

    if len(response.split()) > 5:
        places = {
            letter: response.lower().rfind(str(option).lower())
            for letter, option in zip(letters, options)
        }
        letter = max(places, key=places.get, default=None)
        if letter is not None and places[letter] >= 0:
            return letter
    return None
