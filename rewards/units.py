r"""Units of measurement: which words after a number are a unit, and when two of them are the same.

A unit is a product of known names with powers, "cm^2", "m/s", "kg m s^{-1}", or a counted noun of
the question ("12 apples" where it asks for apples). A letter of algebra, \pi, ! or a word of
magnitude is not a unit: "4x", "4\pi", "4 million" are not 4.
"""

import re

NAMES = {  # a unit -> its other spellings; a plural -s is understood
    # length
    "nm": "nanometer nanometre", "μm": "micrometer micrometre micron",
    "mm": "millimeter millimetre", "cm": "centimeter centimetre 厘米", "dm": "decimeter decimetre",
    "m": "meter metre 米", "km": "kilometer kilometre 千米 公里", "in": "inch inches",
    "ft": "foot feet", "yd": "yard", "mi": "mile", "nmi": "nautical-mile 海里", "ly": "light-year",
    # mass and volume
    "mg": "milligram", "g": "gram", "kg": "kilogram", "t": "ton tonne", "lb": "lbs pound",
    "oz": "ounce", "ml": "mL milliliter millilitre cc", "L": "l liter litre",
    # time and speed
    "ms": "millisecond", "s": "sec second 秒", "min": "minute 分钟", "h": "hr hour 小时", "day": "",
    "week": "", "month": "", "year": "yr years-old", "Hz": "hz hertz", "kHz": "", "MHz": "",
    "GHz": "", "mph": "",
    # angle and temperature
    "°": "degree deg 度", "rad": "radian", "°C": "celsius degrees-celsius",
    "°F": "fahrenheit degrees-fahrenheit", "K": "kelvin",
    # force, energy, electricity, matter
    "N": "newton", "kN": "", "Pa": "pascal", "kPa": "", "MPa": "", "atm": "", "J": "joule",
    "kJ": "kilojoule", "cal": "calorie", "kcal": "", "eV": "", "W": "watt", "kW": "kilowatt",
    "kWh": "", "V": "volt", "mV": "", "A": "amp ampere", "mA": "", "Ω": "ohm", "C": "coulomb",
    "mol": "mole",
    # money
    "$": "dollar usd USD", "¢": "cent", "€": "euro", "£": "gbp", "¥": "yuan yen rmb 元",
}
COUNTED = {  # what is counted, not measured: "3 people" is 3
    "unit": "", "square unit": "sq-unit", "person": "people persons", "item": "", "object": "",
    "piece": "", "student": "", "child": "children", "way": "", "point": "", "side": "",
}
MONEY = {"$", "¢", "€", "£", "¥"}
LONGEST = 60  # characters
NO_UNITS = {  # words that change the number, or begin another one
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "halves", "third",
    "quarter", "times", "twice", "double", "percent", "pi", "squared", "cubed", "factorial",
    "root", "log", "or", "and", "to", "plus", "minus", "over", "by", "not", "than", "most",
    "least", "about", "is", "are", "of", "the", "a", "an", "in", "for", "if", "e", "i", "x", "y",
    "z", "n", "k", "but", "so", "it", "what", "which", "how", "many",
}


def spellings() -> dict[str, str]:
    """Every spelling of a unit -> its name."""
    table = {}
    for name, others in {**NAMES, **COUNTED}.items():
        for spelling in [name, *others.split()]:
            words = spelling.replace("-", " ")
            table[words] = name
            if len(words) > 2:
                table[words + "s"] = name
    return table


SPELLINGS = spellings()
POWERS = [  # other ways to write a power, as "cm^2"
    (re.compile("²"), "^2"),
    (re.compile("³"), "^3"),
    (re.compile(r"平方(千米|厘米|米)"), r"\1^2"),
    (re.compile(r"\b(?:square|sq\.?) (?!units?\b)([a-z]+)"), r"\1^2"),
    (re.compile(r"\b(?:cubic|cu\.?) ([a-z]+)"), r"\1^3"),
    (re.compile(r"\b([a-z]+) squared"), r"\1^2"),
    (re.compile(r"\b([a-z]+) cubed"), r"\1^3"),
]
FACTOR = re.compile(  # "cm", "cm^2", "cm^{2}", "cm2", "°C", "$"
    r"""(?P<name>[^\W\d_]+|°(?:[ ]?[CFcf]\b)?|[$¢€£¥])
        (?:\s*\^\s*\{?\s*(?P<power>-?\d)\s*\}?|(?P<digit>\d)\b)?
        [ *·.{}]*""",
    re.VERBOSE,
)


def read_unit(text: str, question: str = "") -> str | None:
    """The unit as a canonical string, "" for none or for things counted; None if it is no unit.

    >>> read_unit("cm^2"), read_unit("square centimeters"), read_unit("km/h")
    ('cm^2', 'cm^2', 'h^-1 km')
    >>> read_unit("x"), read_unit("million")
    (None, None)
    >>> read_unit("apples"), read_unit("apples", "How many apples are left?")
    (None, '')
    """
    text = text.strip(" .,;*·()").replace("µ", "μ")
    if not text or len(text) > LONGEST:
        return None if text else ""
    if is_counted(text, question):
        return ""

    for pattern, power in POWERS:
        text = pattern.sub(power, text)
    powers = read_factors(text)
    if powers is None or is_magnitude_of_money(powers):
        return None
    named = sorted((name, power) for name, power in powers.items() if name not in COUNTED)
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in named)


def read_factors(text: str) -> dict[str, int] | None:
    """`m s^{-1}` -> {"m": 1, "s": -1}; None if anything in it is not a known unit."""
    powers: dict[str, int] = {}
    sign = 1
    for part in re.split(r"(/|\bper\b)", text):
        part = part.strip()
        if part in ("/", "per"):
            sign = -1
            continue
        factors = [(name_of(part), 1)] if name_of(part) else split_factors(part)
        if factors is None:
            return None
        for name, power in factors:
            powers[name] = powers.get(name, 0) + sign * power
    return powers


def is_magnitude_of_money(powers: dict[str, int]) -> bool:
    """Is money multiplied? "12 $ m" is 12 million, no unit; "12 $/h" is one."""
    others = [power for name, power in powers.items() if name not in MONEY]
    return len(others) < len(powers) and max(others, default=0) > 0


def split_factors(text: str) -> list[tuple[str, int]] | None:
    """`kg m^2` -> [("kg", 1), ("m", 2)]; None if one of them is not known."""
    factors, position = [], 0
    while position < len(text):
        factor = FACTOR.match(text, position)
        name = name_of(factor["name"].replace(" ", "")) if factor else None
        if name is None:
            return None
        factors.append((name, int(factor["power"] or factor["digit"] or 1)))
        position = factor.end()
    return factors


def name_of(word: str) -> str | None:
    """The canonical name of a unit. Case matters in a single letter: N is newton, n is none."""
    return SPELLINGS.get(word) or (SPELLINGS.get(word.lower()) if len(word) > 1 else None)


def is_counted(text: str, question: str) -> bool:
    """Is it what the question asks to count? At most four words, all of them in the question."""
    words = re.findall(r"[a-z]+", text.lower())
    if not 1 <= len(words) <= 4 or set(words) & NO_UNITS:
        return False
    if not re.fullmatch(r"[A-Za-z' -]+", text) or len(text.strip(" '-")) < 3:
        return False
    asked = {singular(word) for word in re.findall(r"[a-z]+", question.lower())}
    return all(singular(word) in asked for word in words)


def is_measured_in(letter: str, question: str) -> bool:
    """Does the question measure in this one-letter unit ("20 m", "in meters")?"""
    long_names = NAMES.get(letter, "").split()
    measured = re.search(rf"\d\s*\\?(?:text|mathrm)?[{{~ ]*{re.escape(letter)}\b", question)
    named = any(re.search(rf"\b{name}", question) for name in long_names if len(name) > 2)
    return measured is not None or named


def is_name_in(letter: str, question: str) -> bool:
    """Does the question use this letter as the name of something?"""
    return re.search(rf"(?<![A-Za-z\\]){re.escape(letter)}(?![A-Za-z])", question) is not None


def singular(word: str) -> str:
    """A crude stem: enough to match "boxes" with "box" and "apples" with "apple"."""
    if word.endswith("es") and len(word) > 4:
        return word[:-2]
    return word.rstrip("s").rstrip("e") if len(word) > 3 else word
