"""Words the town's titles and queries are made of.

A title is a pure function of its topic and a number below `COMBINATIONS`: 1,000 titles a topic, all different.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic: who speaks about it, adjectives that suit each of its ten subjects, and the subjects."""

    name: str
    person: str
    adjectives: tuple[str, str, str]
    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of item. Chances are for a reader who likes the topic and looks at an item of middling quality."""

    name: str
    click: float
    save: float
    share: float
    templates: tuple[str, ...]


KINDS: Final = (
    Kind(
        "gossip",
        0.60,
        0.01,
        0.06,
        (
            "The quarrel over {s} that nobody saw coming",
            "What one {p} said about {s} leaves fans speechless",
            "{s}: the secret this {p} never wanted out",
            "Famous {p} storms out over {s}",
            "You will not guess which {p} gave up {s}",
        ),
    ),
    Kind(
        "news",
        0.40,
        0.03,
        0.09,
        (
            "{s}: what changed this week",
            "Town council argues about {s}",
            "Why everyone is talking about {s}",
            "Local {p} wins a prize for {s}",
            "Rising prices reach {s}",
        ),
    ),
    Kind(
        "story",
        0.30,
        0.05,
        0.22,
        (
            "How {s} changed my year",
            "Letters of a {p}: {s}",
            "A short history of {s}",
            "Growing up with {s}",
            "The {p} who lived for {s}",
        ),
    ),
    Kind(
        "review",
        0.28,
        0.12,
        0.03,
        (
            "{s}: five favourites compared",
            "A {p} ranks {s}",
            "{s}, tested for a month",
            "{s}: worth the fuss?",
            "The good and the bad of {s}",
        ),
    ),
    Kind(
        "how-to",
        0.20,
        0.36,
        0.05,
        (
            "{s} for beginners",
            "{s}, step by step",
            "A weekend plan for {s}",
            "Seven mistakes with {s} and how to avoid them",
            "{s} on a small budget",
        ),
    ),
)


def _topic(name: str, person: str, adjectives: str, subjects: str) -> Topic:
    first, second, third = adjectives.split(", ")
    return Topic(name, person, (first, second, third), tuple(subjects.split(", ")))


TOPICS: Final = (
    _topic(
        "cooking",
        "chef",
        "ten-minute, one-pot, meatless",
        "lentil soup, mushroom risotto, tomato stew, chickpea curry, noodle broth, "
        "bean chilli, pumpkin gratin, fried rice, leek quiche, potato salad",
    ),
    _topic(
        "baking",
        "baker",
        "no-fuss, overnight, classic",
        "sourdough, rye bread, cinnamon rolls, apple pie, croissants, "
        "focaccia, lemon cake, shortbread, bagels, plum tart",
    ),
    _topic(
        "gardening",
        "gardener",
        "small-space, shady, organic",
        "tomato beds, rose borders, herb pots, compost heaps, balcony planters, "
        "fruit hedges, wildflower lawns, raised beds, greenhouse cucumbers, berry bushes",
    ),
    _topic(
        "football",
        "goalkeeper",
        "amateur, modern, old-school",
        "penalty kicks, corner drills, goal celebrations, transfer season, derby nights, "
        "defensive lines, throw-ins, team captains, offside traps, youth leagues",
    ),
    _topic(
        "running",
        "runner",
        "slow, early-morning, winter",
        "trail runs, marathons, hill sprints, half marathons, park runs, "
        "interval training, recovery jogs, barefoot running, night races, relay races",
    ),
    _topic(
        "cycling",
        "cyclist",
        "rainy-day, long-distance, city",
        "gravel rides, bike commutes, mountain passes, cargo bikes, bike repairs, "
        "bike tours, folding bikes, track races, tandem trips, bike lanes",
    ),
    _topic(
        "astronomy",
        "astronomer",
        "backyard, deep-sky, rare",
        "meteor showers, lunar eclipses, star maps, planet watching, telescopes, "
        "comets, galaxies, sunspots, star clusters, moon photographs",
    ),
    _topic(
        "photography",
        "photographer",
        "black-and-white, low-light, pocket",
        "street portraits, film cameras, landscape shots, macro lenses, family albums, "
        "wedding pictures, drone pictures, darkrooms, self-portraits, bird photographs",
    ),
    _topic(
        "travel",
        "traveller",
        "slow, off-season, family",
        "night trains, island ferries, city breaks, desert treks, road trips, "
        "mountain huts, river cruises, camping trips, hostel stays, border crossings",
    ),
    _topic(
        "film",
        "director",
        "low-budget, forgotten, cult",
        "horror films, silent comedies, heist films, spy thrillers, film scores, "
        "short films, westerns, courtroom dramas, animated films, road movies",
    ),
    _topic(
        "music",
        "drummer",
        "live, unplugged, old",
        "jazz records, folk songs, synth albums, string quartets, guitar solos, "
        "choir pieces, vinyl pressings, drum breaks, love songs, piano sonatas",
    ),
    _topic(
        "books",
        "novelist",
        "short, banned, translated",
        "crime novels, poetry collections, fairy tales, ghost stories, family sagas, "
        "war diaries, science fiction, travel books, essays, picture books",
    ),
    _topic(
        "chess",
        "grandmaster",
        "fast, daring, endless",
        "queen sacrifices, rook endings, opening traps, blitz games, pawn storms, "
        "knight forks, club tournaments, mating nets, blindfold games, gambits",
    ),
    _topic(
        "woodwork",
        "carpenter",
        "hand-made, rustic, tiny",
        "oak tables, bookshelves, garden benches, spoon carving, tool chests, "
        "dovetail joints, picture frames, rocking chairs, toy boats, bird houses",
    ),
    _topic(
        "knitting",
        "knitter",
        "chunky, striped, vintage",
        "wool scarves, cable sweaters, baby blankets, lace shawls, winter socks, "
        "mittens, bobble hats, cardigans, cushion covers, legwarmers",
    ),
    _topic(
        "fashion",
        "designer",
        "second-hand, tailored, colourful",
        "winter coats, denim jackets, summer dresses, leather boots, silk ties, "
        "rain capes, linen suits, straw hats, party shoes, handbags",
    ),
    _topic(
        "cats",
        "cat sitter",
        "shy, elderly, adventurous",
        "kittens, house cats, rescue cats, barn cats, ginger cats, "
        "siamese cats, sofa cats, night prowlers, stray cats, bookshop cats",
    ),
    _topic(
        "dogs",
        "dog trainer",
        "stubborn, gentle, energetic",
        "puppies, sheepdogs, terriers, guide dogs, rescue dogs, "
        "greyhounds, dachshunds, mountain dogs, poodles, beagles",
    ),
    _topic(
        "technology",
        "engineer",
        "self-made, repairable, pocket-sized",
        "home servers, smart lamps, robot vacuums, weather stations, e-readers, "
        "radio kits, solar chargers, game consoles, keyboards, 3D printers",
    ),
    _topic(
        "money",
        "accountant",
        "ethical, everyday, long-term",
        "savings accounts, index funds, household budgets, pension plans, mortgages, "
        "tax returns, emergency funds, student loans, share clubs, insurance policies",
    ),
    _topic(
        "health",
        "doctor",
        "gentle, daily, evening",
        "yoga stretches, sleep routines, breathing exercises, back exercises, cold showers, "
        "balance training, meditation, eye exercises, posture drills, power naps",
    ),
    _topic(
        "history",
        "historian",
        "lost, medieval, disputed",
        "castles, trade routes, royal feuds, pirate towns, cathedrals, "
        "sea battles, spice markets, border walls, treasure hoards, peace treaties",
    ),
    _topic(
        "painting",
        "painter",
        "abstract, miniature, outdoor",
        "watercolours, oil portraits, murals, still lifes, charcoal sketches, "
        "woodcuts, seascapes, ink drawings, pastels, frescoes",
    ),
    _topic(
        "nature",
        "ranger",
        "remote, endangered, urban",
        "beech forests, songbirds, peat bogs, butterflies, river otters, "
        "wild orchids, wolf packs, coral reefs, mountain lakes, honey bees",
    ),
)

_NAMES: Final = """
ada amir anouk bela bruno carmen chidi clara dario dina elif emil farah felix greta hana hugo ines
ivo jamal june kaya kofi lena leo lucia maja marek mina nadia nils noor olga omar paula pavel quinn
rosa sami selma tariq tessa uma victor wanda xenia yara yusuf zoe
"""
FIRST_NAMES: Final = tuple(_NAMES.split())

_VARIANTS: Final = 4
SUBJECTS: Final = 10
COMBINATIONS: Final = len(KINDS) * SUBJECTS * _VARIANTS * len(KINDS[0].templates)


@dataclass(frozen=True, slots=True)
class Wording:
    """What a combination stands for: indices into `KINDS` and the topic's subjects, and the title."""

    kind: int
    subject: int
    title: str


def wording(topic: int, combination: int) -> Wording:
    """Title `combination` (below `COMBINATIONS`) of a topic. Different combinations have different titles."""
    rest, kind = divmod(combination, len(KINDS))
    rest, subject = divmod(rest, SUBJECTS)
    template, variant = divmod(rest, _VARIANTS)
    words = TOPICS[topic]
    noun = words.subjects[subject]
    if variant:
        noun = f"{words.adjectives[variant - 1]} {noun}"
    title = KINDS[kind].templates[template].format(s=noun, p=words.person)
    return Wording(kind, subject, title[0].upper() + title[1:])
