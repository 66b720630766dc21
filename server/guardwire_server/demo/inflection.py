"""Regular English verb forms, enough to bend the first word of a verb phrase.

The corpus writes a goal once, in the base form ("rob a bank"); sentence frames ask for "robbing a bank" or "robbed a
bank".
"""

_IRREGULAR_VERBS = """
be:was beat:beat become:became begin:began bend:bent bet:bet bite:bit bleed:bled blow:blew break:broke breed:bred
bring:brought build:built burn:burned burst:burst buy:bought catch:caught choose:chose come:came cost:cost cut:cut
deal:dealt dig:dug do:did draw:drew drink:drank drive:drove eat:ate fall:fell feed:fed feel:felt fight:fought
find:found fly:flew forget:forgot freeze:froze get:got give:gave go:went grind:ground grow:grew hang:hung have:had
hear:heard hide:hid hit:hit hold:held hurt:hurt keep:kept know:knew lay:laid lead:led learn:learned leave:left
lend:lent let:let lie:lied light:lit lose:lost make:made mean:meant meet:met overthrow:overthrew pay:paid put:put
quit:quit read:read ride:rode ring:rang rise:rose run:ran say:said see:saw seek:sought sell:sold send:sent set:set
sew:sewed shake:shook shoot:shot show:showed shut:shut sing:sang sit:sat sleep:slept slide:slid sneak:snuck
speak:spoke speed:sped spend:spent spin:spun split:split spread:spread stand:stood steal:stole stick:stuck
sting:stung strike:struck swear:swore sweep:swept swim:swam swing:swung take:took teach:taught tear:tore tell:told
think:thought throw:threw understand:understood undo:undid wake:woke wear:wore weave:wove win:won wind:wound
write:wrote rewrite:rewrote bid:bid sink:sank shrink:shrank cast:cast withdraw:withdrew rebuild:rebuilt
outrun:outran overcome:overcame mislead:misled override:overrode torture:tortured upset:upset
"""
_DOUBLING_VERBS = """
admit ban bar beg begin bet blog bug chat chop chug clap clip commit control cram cut dig drag drip drop drug drum
fit flip forget gag get grab grin gun hit hop hug jam jog kidnap knit let log mug nap pat peg pet pin plan plot plug
pop prefer put quit ram refer rid rig rip rob rub run scam scan scrap scrub set shop shred shut sip sit skim skip
slam slap slip snap sob spam spin split spot stab star step stir stop strap strip submit swap swim tag tan tap thin
throb tip top transfer trap trim trip tug unplug unzip wed whip whiz win wrap zip
"""

_IRREGULAR_PAST = dict(pair.split(":") for pair in _IRREGULAR_VERBS.split())
_DOUBLED = frozenset(_DOUBLING_VERBS.split())
_VOWELS = frozenset("aeiou")


def present_participle(verb: str) -> str:
    """`rob` → `robbing`, `make` → `making`, `lie` → `lying`."""
    if verb in _DOUBLED:
        return verb + verb[-1] + "ing"
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")) and verb != "be":
        return verb[:-1] + "ing"
    return verb + "ing"


def past_tense(verb: str) -> str:
    """`rob` → `robbed`, `make` → `made`, `carry` → `carried`."""
    if verb in _IRREGULAR_PAST:
        return _IRREGULAR_PAST[verb]
    if verb in _DOUBLED:
        return verb + verb[-1] + "ed"
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2:-1] not in _VOWELS:
        return verb[:-1] + "ied"
    return verb + "ed"


def inflect_phrase(phrase: str, form: str) -> str:
    """Bends the verb of a phrase that starts with it, or with an adverb in -ly before it.

    Args:
        phrase: A verb phrase in the base form.
        form: `base`, `ing` or `past`.
    """
    if form == "base":
        return phrase
    words = phrase.split(" ")
    position = (
        1 if len(words) > 1 and words[0].endswith("ly") and words[0] not in {"fly", "rely", "apply", "reply"} else 0
    )
    bend = present_participle if form == "ing" else past_tense
    words[position] = bend(words[position])
    return " ".join(words)
