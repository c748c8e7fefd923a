"""Common English words, from which the keys of needles are made."""

_ADJECTIVES = (
    "able aged ample amber awake bare basic blue bold brave brief bright broad brown calm cheap clean clear clever "
    "close cold cool crisp curly damp dark dear deep dense dry dull dusty early easy equal even faint fair famous "
    "fancy fast fine firm flat fond fresh full funny gentle giant glad golden grand great green grey happy hard harsh "
    "heavy hollow honest huge humble icy idle ideal jolly keen kind large late lazy lean light little lively local "
    "lone long loose loud low lucky mad major mild minor moist narrow neat new nice noble noisy odd old open orange "
    "pale perfect pink plain polite poor proud pure purple quick quiet rapid rare raw ready red rich ripe rough round "
    "royal rusty sad safe salty sandy sharp shiny short shy silent silver simple slim slow small smart smooth soft "
    "solid sour spare square steep stern still strange strict strong sunny sweet swift tall tame tender thick thin "
    "tidy tight tiny tough true upper urban vague vast vivid warm weak wet white whole wide wild wise young zesty"
)
_NOUNS = (
    "acorn actor anchor angle ankle apple apron arch arrow artist attic autumn baker balloon banana bank barn barrel "
    "basin basket beach beacon bear beetle bell bench berry bird blanket board boat bone book boot bottle bowl branch "
    "bread brick bridge broom brush bucket bus button cabin cactus cake camel camera candle canoe canvas captain card "
    "carpet carrot castle cat cellar chain chair chalk cherry chest chimney circle city clock cloud coach coat coffee "
    "coin comet cook copper coral corner cotton cousin crane crown cup curtain dance dancer desert desk diamond dog "
    "dollar donkey door dragon drawer dress drum eagle ear earth edge elbow engine farmer feather fence fiddle field "
    "finger fire fish flag flame flower flute forest fork fountain fox frame friend frog garden garlic gate ghost "
    "giraffe glass globe glove goat grape grass guard guitar hammer harbour harp hat hawk heart hedge helmet hill "
    "honey hook horse hotel house island ivory jacket jar jewel judge juice kettle key kitchen kite knee knife knot "
    "ladder lake lamp lantern leaf lemon letter lion lizard lock map marble market mask meadow medal melon mirror "
    "monkey moon mountain mouse museum needle nest net nut oak ocean olive onion orchard otter oven owl paint palace "
    "panda paper parcel parrot peach pear pearl pebble pencil pepper piano picture pigeon pillow pilot pine pipe "
    "planet plate pocket poem poet pond potato puzzle rabbit radio rain ribbon rice ring river road robin rocket roof "
    "root rope rose sail sailor salt sand saddle scarf school screw seed shadow sheep shell ship shirt shoe shore "
    "shovel singer sister skirt sky snail snow soap sofa spade spider spoon spring stable stamp star statue stone "
    "storm story stove street string sugar suit summer sun swan sword table tailor tea teacher temple tent thread "
    "throne thumb ticket tiger timber tower towel town train tray tree trumpet tulip tunnel turtle uncle valley vase "
    "velvet village violin wagon wall walnut watch water wave whale wheel whistle willow window wing winter wolf wood "
    "wool writer yard zebra"
)
ADJECTIVES, NOUNS = _ADJECTIVES.split(), _NOUNS.split()


def pair(number: int) -> str:
    """The key `adjective-noun` of a number; equal numbers modulo `PAIRS` give equal keys."""
    return f"{ADJECTIVES[number // len(NOUNS) % len(ADJECTIVES)]}-{NOUNS[number % len(NOUNS)]}"


PAIRS = len(ADJECTIVES) * len(NOUNS)
"""How many keys there are."""
