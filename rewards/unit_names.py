"""The known units, and the words that are not units: data for `units.py`.

"in" stands in both tables: "4 in" is 4 inches, but "in" is never a thing that is counted.
"""

NAMES = {  # a unit -> its other spellings; write a hyphen for a space, and no plural -s
    # length
    "nm": "nanometer nanometre",
    "μm": "micrometer micrometre micron",
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre 厘米",
    "dm": "decimeter decimetre",
    "m": "meter metre 米",
    "km": "kilometer kilometre 千米 公里",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "nmi": "nautical-mile 海里",
    "ly": "light-year",
    # mass
    "mg": "milligram",
    "g": "gram",
    "kg": "kilogram",
    "t": "ton tonne",
    "lb": "lbs pound",
    "oz": "ounce",
    # volume
    "ml": "mL milliliter millilitre cc",
    "L": "l liter litre",
    # time and speed
    "ms": "millisecond",
    "s": "sec second 秒",
    "min": "minute 分钟",
    "h": "hr hour 小时",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr years-old",
    "Hz": "hz hertz",
    "kHz": "",
    "MHz": "",
    "GHz": "",
    "mph": "",
    # angle and temperature
    "°": "degree deg 度",
    "rad": "radian",
    "°C": "celsius degrees-celsius",
    "°F": "fahrenheit degrees-fahrenheit",
    "K": "kelvin",
    # force, pressure, energy, power
    "N": "newton",
    "kN": "",
    "Pa": "pascal",
    "kPa": "",
    "MPa": "",
    "atm": "",
    "J": "joule",
    "kJ": "kilojoule",
    "cal": "calorie",
    "kcal": "",
    "eV": "",
    "W": "watt",
    "kW": "kilowatt",
    "kWh": "",
    # electricity and matter
    "V": "volt",
    "mV": "",
    "A": "amp ampere",
    "mA": "",
    "Ω": "ohm",
    "C": "coulomb",
    "mol": "mole",
    # money
    "$": "dollar usd USD",
    "¢": "cent",
    "€": "euro",
    "£": "gbp",
    "¥": "yuan yen rmb 元",
}

MONEY = {"$", "¢", "€", "£", "¥"}

COUNTED = {  # what is counted, not measured: "3 people" is 3
    "unit": "",
    "square unit": "sq-unit",
    "person": "people persons",
    "item": "",
    "object": "",
    "piece": "",
    "student": "",
    "child": "children",
    "way": "",
    "point": "",
    "side": "",
}

NO_UNITS = {
    # change the number: "4 million", "4 squared"
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "halves", "third",
    "quarter", "times", "twice", "double", "percent", "squared", "cubed", "factorial", "root",
    # are algebra: "4 log", "4x"
    "pi", "log", "e", "i", "x", "y", "z", "n", "k",
    # begin another number or a comparison: "4 or 5", "4 less than"
    "or", "and", "to", "plus", "minus", "over", "by", "not", "than", "most", "least", "about",
    # go on in a sentence: "4 is the number"
    "is", "are", "of", "the", "a", "an", "in", "for", "if", "but", "so", "it", "what", "which",
    "how", "many",
}
