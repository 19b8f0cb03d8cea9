"""Words whose exchange changes what an English text says: opposites, units, months, countries.

Everything is lower case. Words with two readings are left out, or come with a condition in
:mod:`~st_hardneg.sources.synthetic.keyword_edits`: a missed edit costs nothing, a wrong one is a bad negative.
"""

from __future__ import annotations

from unicodedata import normalize

_ANTONYM_PAIRS = """
increase decrease, higher lower, high low, highest lowest, greater smaller, larger smaller, large small,
largest smallest, greatest smallest, more less, before after, always never, inhibitor activator, inhibitors activators,
inhibition activation, inhibitory stimulatory, promotion suppression, upregulation downregulation, positive negative,
positively negatively, positives negatives, positivity negativity, early late, earlier later, earliest latest,
younger older, youngest oldest, stronger weaker, strong weak, strongly weakly, strongest weakest, faster slower,
fast slow, fastest slowest, rapid slow, rapidly slowly, quickly slowly, shorter longer, shortest longest,
maximum minimum, maximal minimal, benign malignant, acute chronic, presence absence, acquired inherited,
susceptible resistant, susceptibility resistance, sensitive insensitive, sensitivity insensitivity,
beneficial harmful, safe unsafe, safely unsafely, effective ineffective, significant insignificant,
significantly insignificantly, necessary unnecessary, sufficient insufficient, dependent independent,
dependently independently, likely unlikely, common rare, commonly rarely, frequent infrequent, frequently rarely,
often seldom, above below, inside outside, internal external, upstream downstream, proximal distal,
anterior posterior, dorsal ventral, male female, males females, men women, man woman, boys girls, boy girl,
maternal paternal, mothers fathers, mother father, sons daughters, husband wife, husbands wives, true false,
correctly incorrectly, correct incorrect, legal illegal, public private, rose fell, better worse, best worst,
poor good, rich poor, expensive cheap, easy difficult, hot cold, thick thin, wide narrow, many few, able unable,
ability inability, success failure, successful unsuccessful, successfully unsuccessfully, bought sold,
stable unstable, stability instability, possible impossible, known unknown, reversible irreversible, complete incomplete,
completely partially, normal abnormal, normally abnormally, healthy unhealthy, direct indirect, directly indirectly,
primary secondary, hyperactive hypoactive, hypertension hypotension, hyperglycemia hypoglycemia, hypertrophy atrophy,
overexpression underexpression, overweight underweight, heterozygous homozygous, intracellular extracellular,
dominant recessive, aerobic anaerobic, soluble insoluble, symmetric asymmetric, reliable unreliable,
agonist antagonist, agonists antagonists, enrichment depletion, gains losses, everybody nobody, everyone nobody,
everything nothing, everywhere nowhere, still hardly, improvement deterioration, improvements deteriorations,
major minor, superior inferior, superiority inferiority, optimistic pessimistic, temporary permanent,
voluntary involuntary, visible invisible, wet dry, deep shallow, heavier lighter, richer poorer, warmer colder,
exacerbation amelioration, acceleration deceleration, expansion contraction, accelerated delayed,
supported contradicted, supports contradicts, simultaneously separately, identical different, similar different,
vertical horizontal, vertically horizontally, northern southern, eastern western, winner loser, winners losers,
raises lowers, raised lowered, raising lowering
"""

# One way only: the way back has another word.
_ONE_WAY = """
smaller larger, slow fast, slowly rapidly, poor good, worse better, rarely frequently, rare common, seldom often,
nobody everybody, cold hot, different similar, partially completely, atrophy hypertrophy, without with,
reduction increase, reductions increases, rise fall, rising falling, falling rising, elevation reduction,
elevations reductions, elevated reduced, decline increase, declines increases, declined increased,
declining increasing, deficient sufficient, deficiency excess, excess deficiency, absent present,
loss gain, lacks has, lacking having, none all, neither both, barely easily, hardly clearly, elevates reduces,
impairment improvement, impairments improvements, dead alive, alive dead, fewer more, additional fewer
"""

# Verbs with all of their forms; the other one's form takes the place.
_VERB_PAIRS = """
increase decrease, activate inhibit, promote suppress, enhance impair, improve worsen, upregulate downregulate,
accept reject, strengthen weaken, enable disable, include exclude, stabilize destabilize, stimulate repress,
facilitate hinder, amplify attenuate, confirm refute, prolong shorten, encourage discourage, allow prohibit,
maximize minimize, ameliorate exacerbate, alleviate aggravate, succeed fail, enrich deplete, widen narrow,
agree disagree, appear disappear, methylate demethylate, phosphorylate dephosphorylate, polarize depolarize,
legalize criminalize, expand contract, accumulate dissipate, heighten lessen, induce prevent, relieve intensify
"""
_ONE_WAY_VERBS = """
reduce increase, diminish increase, abolish restore, abrogate enhance, impede facilitate, prevent induce,
stimulate inhibit, block enable, augment reduce, elevate reduce, accelerate slow, trigger prevent, restrict expand,
antagonize activate, silence activate, ablate restore, disrupt maintain, preserve destroy, degrade preserve,
protect expose
"""

# The base form and the one in -s of these are nouns, too, or change their grammar.
_NO_BASE_FORM = {"block", "silence", "contract", "trigger", "accelerate", "protect", "slow", "lower"}

PHRASES = {
    "at least": "at most",
    "at most": "at least",
    "more than": "less than",
    "less than": "more than",
    "fewer than": "more than",
    "a few": "many",
    "long-term": "short-term",
    "short-term": "long-term",
    "long-lived": "short-lived",
    "short-lived": "long-lived",
    "long-lasting": "short-lived",
    "up-regulated": "down-regulated",
    "down-regulated": "up-regulated",
    "up-regulates": "down-regulates",
    "down-regulates": "up-regulates",
    "up-regulation": "down-regulation",
    "down-regulation": "up-regulation",
    "up-regulate": "down-regulate",
    "down-regulate": "up-regulate",
    "pro-inflammatory": "anti-inflammatory",
    "anti-inflammatory": "pro-inflammatory",
    "gain of": "loss of",
    "loss of": "gain of",
    "gain-of-function": "loss-of-function",
    "loss-of-function": "gain-of-function",
    "lack of": "abundance of",
    "failed to": "managed to",
    "fails to": "manages to",
    "fail to": "manage to",
    "caused by": "prevented by",
    "due to": "despite",
    "because of": "despite",
    "despite": "because of",
    "no longer": "still",
    "no one": "everyone",
    "in addition to": "instead of",
    "instead of": "in addition to",
    "rather than": "as well as",
    "as well as": "but not",
    "but not": "and",
    "in favor of": "against",
    "in favour of": "against",
    "prior to": "after",
    "non-significant": "significant",
    "non-small": "small",
}


def _pairs(lines: str) -> list[tuple[str, str]]:
    pairs = [pair.split() for pair in lines.replace("\n", " ").split(",")]
    return [(one, other) for one, other in pairs]


def forms(verb: str) -> tuple[str, str, str, str]:
    """Return base form, third person, past and participle of a regular verb.

    Example:
        >>> forms("modify"), forms("reduce")[1:3]
        (('modify', 'modifies', 'modified', 'modifying'), ('reduces', 'reduced'))
    """
    if verb.endswith("e"):
        return verb, f"{verb}s", f"{verb}d", f"{verb[:-1]}ing"
    if verb.endswith("y") and verb[-2] not in "aeou":
        return verb, f"{verb[:-1]}ies", f"{verb[:-1]}ied", f"{verb}ing"
    third = f"{verb}es" if verb.endswith(("s", "x", "z", "ch", "sh")) else f"{verb}s"
    return verb, third, f"{verb}ed", f"{verb}ing"


def _verb_forms(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    found = []
    for verb, other in pairs:
        both = list(zip(forms(verb), forms(other), strict=True))
        found += both[2:] if {verb, other} & _NO_BASE_FORM else both
    return found


def _antonyms() -> dict[str, str]:
    both_ways = _pairs(_ANTONYM_PAIRS) + _verb_forms(_pairs(_VERB_PAIRS))
    one_way = _pairs(_ONE_WAY) + _verb_forms(_pairs(_ONE_WAY_VERBS))
    found: dict[str, str] = {}
    for word, other in both_ways:
        found.setdefault(word, other)
        found.setdefault(other, word)
    for word, other in one_way:
        found.setdefault(word, other)
    return found


ANTONYMS = _antonyms()

# Third persons that are verbs only, so that "does not" can come before them; those that are nouns, too, are left out.
VERBS = {
    forms(base)[1]: base
    for base in """
    affect require contribute depend promote regulate mediate encode bind interact protect appear remain provide
    allow produce contain reduce inhibit activate induce prevent enhance improve impair suppress involve correlate occur
    stimulate facilitate modulate determine express belong exist consist exhibit possess maintain enable confer predict
    indicate suggest demonstrate reveal confirm explain serve participate include constitute alter govern bring keep
    become recognize catalyze phosphorylate degrade stabilize develop differentiate migrate proliferate survive respond
    begin arise emerge originate reside localize differ vary rely elicit evoke generate accelerate attenuate ameliorate
    exacerbate alleviate abolish abrogate diminish recruit secrete synthesize inactivate disrupt destroy eliminate
    accumulate cooperate compete prolong shorten worsen lead play metabolize initiate reflect
    """.split()
} | {"undergoes": "undergo"}
# Nouns as often as verbs, unless an article or the like follows.
VERBS_BEFORE_ARTICLE = {
    forms(base)[1]: base
    for base in """
    cause control influence form show trigger support drive increase decrease lower raise use need benefit favor favour
    extend limit block target change shape delay help
    """.split()
}
ARTICLES = frozenset("the a an its their this these".split())

AUXILIARIES = frozenset(
    "is are was were has have had can could will would shall should may might must does do did".split()
)
BE = frozenset("is are was were".split())
HAVE = frozenset("has have had".split())

MONTHS = "january february march april may june july august september october november december".split()
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
COUNTRIES = """
argentina australia austria bangladesh belgium brazil bulgaria canada chile china colombia croatia cuba denmark egypt
ethiopia finland france germany ghana greece hungary iceland india indonesia iran iraq ireland israel italy japan kenya
malaysia mexico morocco nepal netherlands nigeria norway pakistan peru philippines poland portugal romania russia
rwanda scotland singapore slovakia spain sudan sweden switzerland syria taiwan tanzania thailand tunisia uganda ukraine
venezuela vietnam zambia zimbabwe england wales
""".split()
DEMONYMS = """
argentinian australian austrian bangladeshi belgian brazilian british bulgarian canadian chilean chinese colombian
croatian cuban danish dutch egyptian ethiopian finnish french german ghanaian greek hungarian icelandic indian
indonesian iranian iraqi irish israeli italian japanese kenyan korean malaysian mexican moroccan nepalese nigerian
norwegian pakistani peruvian polish portuguese romanian russian scottish spanish sudanese swedish swiss syrian thai
tunisian turkish ugandan ukrainian vietnamese
""".split()
CONTINENTS = "africa asia europe oceania".split()
CONTINENTAL = "african asian european".split()
DIRECTIONS = "north south east west".split()
SEASONS = "winter spring summer autumn".split()
COLOURS = "red green blue yellow purple brown".split()

CYCLES: dict[str, list[str]] = {
    word: cycle
    for cycle in (MONTHS, WEEKDAYS, COUNTRIES, DEMONYMS, CONTINENTS, CONTINENTAL, DIRECTIONS, COLOURS)
    for word in cycle
} | {word: SEASONS for word in ("winter", "summer", "autumn")}
CAPITALISED = frozenset([*MONTHS, *WEEKDAYS, *COUNTRIES, *DEMONYMS, *CONTINENTS, *CONTINENTAL])

# Units that are words, smallest first. They are exchanged wherever they stand.
UNIT_WORDS = [
    "hours days weeks months years decades".split(),
    "hour day week month year decade".split(),
    "hourly daily weekly monthly yearly".split(),
    "annually monthly weekly daily".split(),
    "annual monthly weekly daily".split(),
    "millimeters centimeters meters kilometers".split(),
    "millimetres centimetres metres kilometres".split(),
    "inches feet yards miles".split(),
    "nanometers micrometers millimeters".split(),
    "nanograms micrograms milligrams grams kilograms tons".split(),
    "nanogram microgram milligram gram kilogram".split(),
    "microliters milliliters liters".split(),
    "millilitres litres".split(),
    "kilobytes megabytes gigabytes terabytes".split(),
    "hundreds thousands millions billions".split(),
    "dollars euros pounds".split(),
    "celsius fahrenheit".split(),
]
# These need a number before them: alone, they have other meanings.
COUNTED_WORDS = [
    "seconds minutes hours days".split(),
    "second minute hour day".split(),
    "thousand million billion trillion".split(),
    "millimeter centimeter meter kilometer".split(),
    "millimetre centimetre metre kilometre".split(),
    "inch foot yard mile".split(),
]
# Symbols need a number before them, and keep their case. Each dimension smallest first.
UNIT_SYMBOLS = [
    "pg ng µg mg g kg".split(),
    "pg ng μg mg g kg".split(),
    "mcg mg g".split(),
    "nm µm mm cm m km".split(),
    "nm μm mm cm m km".split(),
    "nl µl ml l".split(),
    "nL µL mL dL L".split(),
    "nL μL mL dL L".split(),
    "pM nM µM mM M".split(),
    "pM nM μM mM M".split(),
    "pmol nmol µmol mmol mol".split(),
    "pmol nmol μmol mmol mol".split(),
    "ns ms s min h d".split(),
    "sec min hr".split(),
    "secs mins hrs".split(),
    "wk mo yr".split(),
    "Hz kHz MHz GHz".split(),
    "Da kDa MDa".split(),
    "bp kb Mb Gb".split(),
    "KB MB GB TB".split(),
    "J kJ MJ".split(),
    "cal kcal".split(),
    "mV V kV".split(),
    "mW W kW MW GW".split(),
    "Pa kPa MPa".split(),
    "°C °F".split(),
    "ºC ºF".split(),
    "km/h m/s".split(),
    "mph km/h".split(),
    "mGy Gy".split(),
    "mCi Ci".split(),
]


def _neighbours(scales: list[list[str]], reach: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for scale in scales:
        for i, unit in enumerate(scale):
            near = scale[max(0, i - reach) : i] + scale[i + 1 : i + 1 + reach]
            known = found.setdefault(unit, [])
            # The two signs for micro are one; the first is used where there is a choice.
            same = {normalize("NFKC", other) for other in known}
            known += [other for other in near if normalize("NFKC", other) not in same]
    return found


WORD_UNITS = _neighbours(UNIT_WORDS, 2)
COUNTED_UNITS = _neighbours(UNIT_WORDS + COUNTED_WORDS, 2)
SYMBOL_UNITS = _neighbours(UNIT_SYMBOLS, 2)

NUMBER_WORDS = [
    "two three four five six seven eight nine ten eleven twelve".split(),
    "twenty thirty forty fifty sixty seventy eighty ninety".split(),
    "twice thrice".split(),
    "doubled tripled quadrupled halved".split(),
    "doubles triples quadruples halves".split(),
    "twofold threefold fivefold tenfold".split(),
]
OTHER_NUMBER_WORDS = {word: [other for other in row if other != word] for row in NUMBER_WORDS for word in row}

# After these, a number is a name of one of few: "type 2", "phase III".
LABELS = frozenset(
    "type types grade stage phase level class group category tier step generation version kinase protein receptor factor "
    "interleukin exon domain subtype subunit serotype trial".split()
)
# After these, a number says where to look, not what is so.
REFERENCES = frozenset("figure fig table section chapter ref refs reference equation eq appendix page no".split())
TIMES = frozenset(
    "second seconds minute minutes hour hours day days week weeks month months year years decades".split()
)

PEOPLE = frozenset(
    "patients people individuals children women men those mice adults subjects participants infants persons rats animals "
    "students countries cells samples".split()
)
SECTION_WORDS = frozenset(
    "the a an in on at of for from to with by and or but as if we our this that these those it its they their there here "
    "however moreover furthermore although while when where whether because since thus therefore here both each all "
    "some no not most many few such using background objective objectives aim aims method methods materials design "
    "setting settings participants patients result results findings finding conclusion conclusions interpretation "
    "purpose context importance main outcome outcomes measure measures significance introduction discussion summary "
    "data sources study selection extraction synthesis funding intervention interventions i ii iii iv v vi is are was "
    "were be what who how why which after before during between among does do did can could will would may might "
    "must should has have had rationale hypothesis limitations subjects measurements trial registration question "
    "type phase stage class grade figure table "
    "primary secondary abstract keywords highlights exposure exposures search strategy".split()
)
