"""The words of the demo model's small world.

The people, qualities and things of recall lists appear nowhere else, so that filler text never
repeats or contradicts a list.
"""

# Who may stand in a recall list.
PEOPLE = """
Adam Agnes Alan Alma Amos Andrea Anton Arlo Astrid August Basil Beatrix Bernard Bianca Boris
Brenda Bruno Calvin Camilla Carl Carmen Cecil Celia Cesar Clara Claude Conrad Cora Cosmo Cyril
Dagmar Dahlia Damian Daphne Darius Delia Dexter Diego Dinah Doris Dorothy Edgar Edith Edmund Elias
Elmer Elsa Emil Enid Enzo Erik Esther Ethel Eugene Eva Fabian Felix Fergus Fiona Flora Floyd Frank
Frida Gemma Georgia Gideon Gilbert Gloria Gordon Greta Gustav Hanna Harold Harriet Hazel Hector
Helga Henry Hilda Homer Horace Hugo Ida Igor Imogen Ingrid Irene Iris Isaac Ivan Jasper Jerome
Joan Jonas Joyce Judith Julius Karen Karl Kevin Klara Lars Laura Leander Lena Leon Leroy Linus
Livia Lorenzo Louis Lucas Lucia Ludwig Mabel Magda Malcolm Marcel Margot Marta Martin Matilda
Maurice Milo Miriam Mona Morris Muriel Myra Nadia Neil Nelson Nigel Nina Noah Nora Norman Odette
Olga Omar Orson Oscar Otto Paula Pedro Petra Philip Phoebe Piers Quentin Rafael Ramona Regina Rita
Robert Roland Rosa Rufus Ruth Samson Selma Silvia Simon Stella Sven Sylvester Tabitha Teresa
Thelma Theodor Tilda Tobias Ulrich Una Ursula Valerie Vera Victor Vincent Viola Walter Wanda
Werner Wilma Xavier Yvonne Zelda
""".split()

# What they have: one quality and one thing. Every quality starts with a consonant, so "a" fits.
QUALITIES = """
beige bent black blue brass bronze brown carved ceramic cheap copper cracked crimson dotted dusty
faded fancy folded foreign forged fragile glass golden gray green heavy hidden hollow jade leather
light linen marble maroon narrow nickel painted paper patched pewter pink plain plastic plated
polished purple red rusty scarlet silver simple slender spare square steel stolen striped
tarnished teal tin torn turquoise twisted velvet violet white wicker wide wooden woolen yellow
""".split()

THINGS = """
anchor anvil apron arrow axe badge bagpipe banjo barrel basin bathtub beaker bell belt bench
bicycle binder blanket blender bolt bonnet bookcase bottle bowl bracelet bridle brooch broom
bucket buckle button cabinet cable calendar camera candle canoe canvas card carpet cart cello
chain chair chalk chart chest chisel clarinet clock coat coin collar comb compass cork cradle
crate crayon crown cup curtain cushion dagger desk dial diary dice dish drill drum easel engine
envelope fan feather fiddle file flag flask flute fork fountain funnel gate gauge globe glove
goblet gong guitar hammer hammock handle harp hat helmet hinge hook horn inkwell jacket jar jug
kettle key kite knife ladder lamp lantern lens lever lock locket magnet mallet map mask medal
mirror mitten mug napkin necklace needle net notebook oar oven paddle padlock pan parcel pencil
pendant piano pillow pin pipe plate plow poster pouch puppet purse quilt racket radio rake razor
ribbon ring robe rope ruler saddle sail sandal saw scale scarf scissor scroll shawl shelf shield
shovel sickle sieve sled spade spoon stamp statue stool stove suitcase sword table tambourine tent
thimble ticket tile toolbox torch towel tray trophy trumpet trunk tuba tweezer umbrella vase vest
violin wagon wallet watch wheel whistle wig window wrench zipper
""".split()

# Who stands in stories: the name, and what the narrator calls them afterwards.
GIRLS = "Lily Anna Mia Sue Lucy Molly Rose Amy Jane Daisy".split()
BOYS = "Tom Ben Max Tim Sam Jack Leo Peter Billy Fred".split()
ANIMALS = "dog cat bird rabbit fox bear duck mouse frog pony squirrel turtle".split()
MOODS = "happy sad tired hungry curious brave proud calm shy excited".split()
PLACES = "forest river garden park village hill beach farm lake meadow".split()
FINDS = "ball stick stone flower shell leaf nut berry toy cookie cake apple".split()
COLORS = "big small round shiny soft pretty strange tiny warm new".split()
FOODS = "soup bread cake fruit rice honey milk cheese".split()
WEATHERS = "sunny rainy windy snowy foggy cloudy".split()

# Words to copy: nothing to do with lists or stories.
COPY_WORDS = """
alpha amber atlas bravo canyon castle cobalt comet coral cosmos crystal delta desert dragon eagle
echo ember falcon fjord galaxy glacier granite harbor hazard hotel indigo island jungle kilo
lagoon lava lemon lima lunar magma mango maple meteor mosaic nebula nectar oasis ocean onyx opal
orbit panther pepper phantom pilot planet prairie quartz quebec raven reef rocket romeo ruby
saffron salmon saturn sierra signal solar sonar tango tiger tundra valley vapor vector venus
vortex walnut whisky willow winter yankee zebra zenith zulu
""".split()
