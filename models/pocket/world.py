"""The pocket model's world: every fact it is taught, and nothing about how it is said.

Owns the written tables below (capitals, currencies, elements, animals, opposites, arithmetic) and
the reader for the country and element tables of an optional data folder. How a fact is asked and
in which voice it is answered is `voices.py`; how it is learned is `build.py`.
Invariant: a (topic, subject) pair names at most one fact, whichever source it came from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fact:
    """One thing to know: the `answer` to `topic` asked of `subject` ("capital", "Peru": "Lima")."""

    topic: str
    subject: str
    answer: str


CAPITALS = """
Afghanistan:Kabul Albania:Tirana Algeria:Algiers Angola:Luanda Argentina:Buenos_Aires
Armenia:Yerevan Australia:Canberra Austria:Vienna Azerbaijan:Baku Bahrain:Manama Bangladesh:Dhaka
Belarus:Minsk Belgium:Brussels Bhutan:Thimphu Botswana:Gaborone Bulgaria:Sofia Cambodia:Phnom_Penh
Canada:Ottawa Chad:N'Djamena Chile:Santiago China:Beijing Croatia:Zagreb Cuba:Havana
Cyprus:Nicosia Denmark:Copenhagen Ecuador:Quito Egypt:Cairo Estonia:Tallinn Ethiopia:Addis_Ababa
Finland:Helsinki Fiji:Suva France:Paris Georgia:Tbilisi Germany:Berlin Ghana:Accra Greece:Athens
Haiti:Port-au-Prince Hungary:Budapest Iceland:Reykjavik India:New_Delhi Indonesia:Jakarta
Iran:Tehran Iraq:Baghdad Ireland:Dublin Italy:Rome Jamaica:Kingston Japan:Tokyo Jordan:Amman
Kenya:Nairobi Kuwait:Kuwait_City Laos:Vientiane Latvia:Riga Lebanon:Beirut Libya:Tripoli
Lithuania:Vilnius Luxembourg:Luxembourg Malta:Valletta Mexico:Mexico_City Mongolia:Ulan_Bator
Morocco:Rabat Nepal:Kathmandu Netherlands:Amsterdam New_Zealand:Wellington Niger:Niamey
Norway:Oslo Oman:Muscat Pakistan:Islamabad Peru:Lima Philippines:Manila Poland:Warsaw
Portugal:Lisbon Qatar:Doha Romania:Bucharest Russia:Moscow Rwanda:Kigali Senegal:Dakar
Serbia:Belgrade Slovakia:Bratislava Slovenia:Ljubljana Somalia:Mogadishu South_Korea:Seoul
Spain:Madrid Sudan:Khartoum Sweden:Stockholm Switzerland:Bern Syria:Damascus Taiwan:Taipei
Thailand:Bangkok Tunisia:Tunis Turkey:Ankara Uganda:Kampala Ukraine:Kyiv United_Kingdom:London
Uruguay:Montevideo Venezuela:Caracas Vietnam:Hanoi Zambia:Lusaka Zimbabwe:Harare
"""

CURRENCIES = """
Australia:Australian_dollar Brazil:Brazilian_real Canada:Canadian_dollar Chile:Chilean_peso
China:Chinese_yuan Colombia:Colombian_peso Denmark:Danish_krone Egypt:Egyptian_pound
Ethiopia:Ethiopian_birr France:Euro Germany:Euro Ghana:Ghanaian_cedi Hungary:Hungarian_forint
India:Indian_rupee Indonesia:Indonesian_rupiah Israel:Israeli_new_shekel Italy:Euro
Jamaica:Jamaican_dollar Japan:Japanese_yen Jordan:Jordanian_dinar Kenya:Kenyan_shilling
Malaysia:Malaysian_ringgit Mexico:Mexican_peso Morocco:Moroccan_dirham Nepal:Nepalese_rupee
Nigeria:Nigerian_naira Norway:Norwegian_krone Peru:Peruvian_sol Poland:Polish_złoty
Qatar:Qatari_riyal Romania:Romanian_leu Russia:Russian_ruble Serbia:Serbian_dinar Spain:Euro
South_Korea:South_Korean_won Sweden:Swedish_krona Switzerland:Swiss_franc Thailand:Thai_baht
Turkey:Turkish_lira Ukraine:Ukrainian_hryvnia Vietnam:Vietnamese_đồng Zambia:Zambian_kwacha
"""

ELEMENTS = """
Hydrogen:H:1 Helium:He:2 Lithium:Li:3 Beryllium:Be:4 Boron:B:5 Carbon:C:6 Nitrogen:N:7 Oxygen:O:8
Fluorine:F:9 Neon:Ne:10 Sodium:Na:11 Magnesium:Mg:12 Aluminium:Al:13 Silicon:Si:14 Phosphorus:P:15
Sulfur:S:16 Chlorine:Cl:17 Argon:Ar:18 Potassium:K:19 Calcium:Ca:20 Titanium:Ti:22 Chromium:Cr:24
Iron:Fe:26 Cobalt:Co:27 Nickel:Ni:28 Copper:Cu:29 Zinc:Zn:30 Silver:Ag:47 Tin:Sn:50 Iodine:I:53
Tungsten:W:74 Platinum:Pt:78 Gold:Au:79 Mercury:Hg:80 Lead:Pb:82 Radon:Rn:86 Radium:Ra:88
Uranium:U:92
"""

YOUNG = """
dog:puppy cat:kitten cow:calf horse:foal sheep:lamb goat:kid pig:piglet hen:chick duck:duckling
goose:gosling swan:cygnet lion:cub deer:fawn kangaroo:joey owl:owlet eagle:eaglet frog:tadpole
hare:leveret eel:elver pigeon:squab salmon:smolt spider:spiderling butterfly:caterpillar
"""

SOUNDS = """
dog:bark cat:meow cow:moo horse:neigh sheep:baa pig:oink duck:quack lion:roar frog:croak
owl:hoot bee:buzz snake:hiss wolf:howl mouse:squeak donkey:bray rooster:crow turkey:gobble
crow:caw elephant:trumpet bear:growl cricket:chirp goose:honk pigeon:coo hyena:laugh
"""

KINDS = """
mammal:dog,cat,whale,bat,dolphin,elephant,kangaroo,hedgehog,otter,seal,camel,giraffe
bird:penguin,ostrich,sparrow,eagle,flamingo,owl,parrot,stork,swan,heron,raven,robin
fish:salmon,tuna,trout,shark,cod,carp,eel,herring,pike,goldfish
reptile:crocodile,turtle,gecko,iguana,cobra,chameleon,python,tortoise
amphibian:frog,toad,newt,salamander,axolotl
insect:ant,bee,beetle,butterfly,cricket,dragonfly,moth,wasp,ladybird,termite
"""

OPPOSITES = """
hot:cold big:small tall:short fast:slow light:dark early:late happy:sad hard:soft loud:quiet
old:new rich:poor strong:weak sweet:sour wet:dry wide:narrow young:aged clean:dirty deep:shallow
empty:full heavy:weightless high:low open:closed sharp:blunt smooth:rough thick:thin
"""

LARGEST_TERM = 9  # sums and products of 1..9 with 2..9


def _pairs(table: str) -> list[list[str]]:
    return [[part.replace("_", " ") for part in entry.split(":")] for entry in table.split()]


def written_facts() -> list[Fact]:
    """The project's own world, always taught: 500-odd facts."""
    facts = [Fact("capital", country, city) for country, city in _pairs(CAPITALS)]
    facts += [Fact("currency", country, money) for country, money in _pairs(CURRENCIES)]
    for name, symbol, number in _pairs(ELEMENTS):
        facts += [Fact("symbol", name, symbol), Fact("number", name, number)]
    facts += [Fact("young", animal, young) for animal, young in _pairs(YOUNG)]
    facts += [Fact("sound", animal, sound) for animal, sound in _pairs(SOUNDS)]
    facts += [
        Fact("kind", animal, kind) for kind, row in _pairs(KINDS) for animal in row.split(",")
    ]
    facts += [Fact("opposite", word, other) for word, other in _pairs(OPPOSITES)]
    for a in range(1, LARGEST_TERM + 1):
        for b in range(2, LARGEST_TERM + 1):
            facts.append(Fact("sum", f"{a} plus {b}", str(a + b)))
            facts.append(Fact("product", f"{a} times {b}", str(a * b)))
    return facts


def data_facts(data: Path) -> list[Fact]:
    """The countries and elements of the data folder `data` (its `facts/*.json`), about 1,350."""
    facts: list[Fact] = []
    for country in json.loads((data / "facts" / "countries.json").read_text(encoding="utf-8")):
        name = country["name"]["common"]
        currencies = [money["name"] for money in (country["currencies"] or {}).values()]
        for topic, answers in (
            ("capital", country["capital"]),
            ("region", [country["region"]]),
            ("subregion", [country["subregion"]]),
            ("currency", currencies),
        ):
            if answers and answers[0]:
                facts.append(Fact(topic, name, answers[0]))
    elements = json.loads((data / "facts" / "elements.json").read_text(encoding="utf-8"))
    for element in elements["elements"] if isinstance(elements, dict) else elements:
        name = element["name"]
        facts.append(Fact("symbol", name, element["symbol"]))
        facts.append(Fact("number", name, str(element["number"])))
        facts.append(Fact("phase", name, element["phase"].lower()))
    return facts


def all_facts(data: Path | None) -> list[Fact]:
    """Written facts, then those of the data folder that the written ones do not already hold."""
    facts = {(fact.topic, fact.subject): fact for fact in data_facts(data)} if data else {}
    facts |= {(fact.topic, fact.subject): fact for fact in written_facts()}
    return list(facts.values())
