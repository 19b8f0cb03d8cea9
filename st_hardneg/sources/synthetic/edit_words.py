"""General English words for keyword edits. A missed edit costs nothing, a wrong one is a bad negative."""

from __future__ import annotations

# The first becomes the second; with "=" the second becomes the first, too.
_OPPOSITES = """
more=less, fewer>more, higher=lower, high=low, highest=lowest, greater=smaller, larger>smaller, largest=smallest,
large=small, big>small, longer=shorter, longest=shortest, younger=older, youngest=oldest, stronger=weaker, strong=weak,
strongest=weakest, faster=slower, fast=slow, quickly=slowly, warmer=colder, hot=cold, rich=poor, better=worse, best=worst,
good=bad, wide=narrow, early=late, earlier=later, earliest=latest, before=after, above=below, inside=outside, north=south,
east=west, first=last, internal=external, maximum=minimum, all>none of the, all the>none of the, all of=none of,
everyone=no one, everybody=nobody, everything=nothing, everywhere=nowhere, always=never, often=rarely, usually>rarely,
sometimes>never, common=rare, many=few, a few>many, without>with, majority=minority, positive=negative, true=false,
correct=incorrect, safe=unsafe, likely=unlikely, possible=impossible, able=unable, easy=difficult, known=unknown,
legal=illegal, public=private, necessary=unnecessary, effective=ineffective, stable=unstable, normal=abnormal,
healthy=unhealthy, direct=indirect, different=identical, similar>different, temporary=permanent, successful=unsuccessful,
success=failure, presence=absence, major=minor, expensive=cheap, male=female, men=women, man=woman, boys=girls, boy=girl,
mother=father, husband=wife, winner=loser, bought=sold, won=lost, began=ended, rose=fell, rises=falls, rising=falling,
rise=fall, raises=lowers, raised=lowered, at least=at most, more than=less than, fewer than>more than, because of=despite,
due to>despite, long-term=short-term, failed to=managed to, no longer=still, instead of=in addition to, prior to>after,
agree=disagree, agrees=disagrees, agreed=disagreed
"""
# Regular verbs, with all of their forms.
_VERBS = """
increase=decrease, reduce>increase, decline>increase, improve=worsen, strengthen=weaken, accept=reject, include=exclude,
prevent>cause, support>oppose, encourage=discourage, succeed=fail, appear=disappear, confirm>contradict,
lengthen=shorten, widen=narrow, accelerate>delay, love=hate, attack>defend, create>destroy, destroy>create
"""
# Expressions in which a word with an opposite has another meaning.
_FIXED = """
more or less, more and more, once more, any more, no more, high school, high schools, as many, how many, too many,
as good, good as, fast food, early as, late as, in common, at first, first of, first name, first aid, at last, last year,
last week, last night, after all, look after, looked after, the above, above all, at all, not all, known as, known for,
best known, also known, public health, different from, rise to, to lower, appear to, appeared to, decline to, declined to,
fail to, or more, or less, named after, so many, very few, appears to, well known, good at, a good many, not many
"""
NUMBER_WORDS = "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty".split()
_MONTHS = "January February March April May June July August September October November December".split()
_WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
DATES = {name: row for row in (_MONTHS, _WEEKDAYS) for name in row}
# Not names, even where they have a capital, such as at the start of a sentence.
NO_NAMES = """the a an in on at of for from to with by and or but as if we our this that these those it its they their
there here he she i you his her my your however although while when where since both each all some no not most many is are
was were be what who how why which after before during between do does did can has have had""".split()
# The commonest words of English and of other languages with Latin letters, to tell which of the two a text is.
ENGLISH = "the of and to is in that for it with was were are on by this be as at from has have not can will".split()
FOREIGN = """el la los las del un una que es y le les des et est une du der die das und ist ein eine nicht den il di che
sono een het en van niet zijn os uma não och att det som på og er ikke av de""".split()


def _opposites() -> dict[str, str]:
    found = {expression.strip(): "" for expression in _FIXED.split(",")}
    for lines, endings in ((_OPPOSITES, [""]), (_VERBS, ["", "s", "ed", "ing"])):
        for pair in map(str.strip, lines.split(",")):
            one, sign, other = pair.partition("=" if "=" in pair else ">")
            for ending in endings:
                silent = "e" if ending in ("ed", "ing") else " "
                word, opposite = one.removesuffix(silent) + ending, other.removesuffix(silent) + ending
                found.setdefault(word, opposite)
                if sign == "=":
                    found.setdefault(opposite, word)
    return found


OPPOSITES = _opposites()
"""Words and expressions, and what to write instead; "" to leave them alone."""
