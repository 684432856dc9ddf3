/* The words and facts that make_suite.c draws from. No word stands in two kinds. */

typedef struct kind { const char *name, *plural; const char *words[48]; } kind;

static const kind kinds[] = {
    { "animal", "animals", { "dog", "cat", "horse", "cow", "pig", "sheep", "goat", "lion", "tiger", "bear", "wolf", "fox", "rabbit", "elephant", "giraffe",
        "zebra", "monkey", "camel", "donkey", "kangaroo", "otter", "beaver", "badger", "hedgehog", "squirrel", "eagle", "owl", "penguin", "parrot", "shark",
        "whale", "dolphin", "frog", "lizard", "leopard", "panther", NULL } },
    { "fruit", "fruits", { "apple", "banana", "cherry", "grape", "lemon", "mango", "melon", "papaya", "pear", "pineapple", "raspberry", "strawberry", "blueberry",
        "apricot", "coconut", "blackberry", "nectarine", "pomegranate", "cranberry", "kumquat", "lychee", "tangerine", "guava", "watermelon", NULL } },
    { "colour", "colours", { "red", "blue", "green", "yellow", "purple", "black", "white", "brown", "grey", "pink", "crimson", "scarlet", "turquoise", "beige",
        "maroon", "magenta", "cyan", "indigo", NULL } },
    { "tool", "tools", { "hammer", "saw", "screwdriver", "wrench", "chisel", "shovel", "rake", "axe", "pliers", "scissors", "ladder", "spade", "crowbar", "mallet",
        "sander", "trowel", "hacksaw", "pickaxe", "tweezers", "wheelbarrow", "drill", "hoe", NULL } },
    { "vehicle", "vehicles", { "car", "bus", "truck", "bicycle", "motorcycle", "airplane", "helicopter", "boat", "ship", "tram", "taxi", "scooter", "tractor",
        "submarine", "ambulance", "canoe", "ferry", "yacht", "van", "locomotive", "rocket", "sailboat", NULL } },
    { "garment", "clothes", { "shirt", "trousers", "dress", "skirt", "jacket", "coat", "sweater", "sock", "shoe", "boot", "hat", "scarf", "glove", "belt", "vest",
        "blouse", "cardigan", "pyjamas", "sandal", "mitten", "hoodie", "raincoat", NULL } },
    { "piece of furniture", "furniture", { "table", "chair", "sofa", "bed", "desk", "wardrobe", "bookcase", "stool", "bench", "cupboard", "armchair", "dresser",
        "cabinet", "bunk", "couch", "sideboard", NULL } },
    { "musical instrument", "instruments", { "piano", "guitar", "violin", "flute", "drum", "trumpet", "cello", "harp", "clarinet", "saxophone", "trombone", "oboe",
        "banjo", "accordion", "mandolin", "ukulele", "bassoon", "xylophone", NULL } },
    { "part of the body", "body", { "arm", "leg", "hand", "foot", "knee", "elbow", "shoulder", "nose", "ear", "mouth", "eye", "finger", "thumb", "toe", "neck",
        "ankle", "wrist", "forehead", "chin", "stomach", "tongue", "cheek", NULL } },
    { "profession", "professions", { "doctor", "teacher", "nurse", "farmer", "baker", "lawyer", "plumber", "carpenter", "pilot", "sailor", "soldier", "dentist",
        "engineer", "butcher", "painter", "singer", "waiter", "tailor", "gardener", "librarian", "firefighter", "journalist", "electrician", "surgeon", NULL } },
    { "food", "foods", { "bread", "cheese", "butter", "soup", "pizza", "pasta", "rice", "sausage", "salad", "pancake", "biscuit", "omelette", "noodles", "sandwich",
        "pudding", "porridge", "burger", "yogurt", "lasagna", "muffin", NULL } },
    { "building", "buildings", { "house", "castle", "church", "school", "hospital", "factory", "museum", "library", "theatre", "temple", "cathedral", "barn",
        "cottage", "palace", "lighthouse", "skyscraper", "warehouse", "prison", NULL } }
};
#define KINDS ((int)(sizeof kinds / sizeof *kinds))

static const char *const first_names[] = { "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Isabel", "Jack", "Kate", "Liam", "Maria", "Noah",
    "Olivia", "Peter", "Quentin", "Rosa", "Simon", "Tina", "Ursula", "Victor", "Wendy", "Xavier", "Yara", "Zoe", "Oscar", "Nina", "Martin", "Laura", NULL };
static const char *const places[] = { "London", "Paris", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Lisbon", "Athens", "Dublin", "Prague", "Warsaw", "Cairo",
    "Lima", "Tokyo", "Delhi", "Boston", "Chicago", "Sydney", "Toronto", "Havana", "Nairobi", "Seoul", "Hanoi", NULL };

/* country, capital, continent, nationality, currency, language most spoken */
static const char *const countries[][6] = {
    { "France", "Paris", "Europe", "French", "euro", "French" }, { "Germany", "Berlin", "Europe", "German", "euro", "German" },
    { "Italy", "Rome", "Europe", "Italian", "euro", "Italian" }, { "Spain", "Madrid", "Europe", "Spanish", "euro", "Spanish" },
    { "Portugal", "Lisbon", "Europe", "Portuguese", "euro", "Portuguese" }, { "Greece", "Athens", "Europe", "Greek", "euro", "Greek" },
    { "Austria", "Vienna", "Europe", "Austrian", "euro", "German" }, { "Ireland", "Dublin", "Europe", "Irish", "euro", "English" },
    { "Finland", "Helsinki", "Europe", "Finnish", "euro", "Finnish" }, { "Sweden", "Stockholm", "Europe", "Swedish", "krona", "Swedish" },
    { "Norway", "Oslo", "Europe", "Norwegian", "krone", "Norwegian" }, { "Denmark", "Copenhagen", "Europe", "Danish", "krone", "Danish" },
    { "Poland", "Warsaw", "Europe", "Polish", "zloty", "Polish" }, { "Hungary", "Budapest", "Europe", "Hungarian", "forint", "Hungarian" },
    { "Romania", "Bucharest", "Europe", "Romanian", "leu", "Romanian" }, { "Iceland", "Reykjavik", "Europe", "Icelandic", "krona", "Icelandic" },
    { "Ukraine", "Kyiv", "Europe", "Ukrainian", "hryvnia", "Ukrainian" }, { "Russia", "Moscow", "Europe", "Russian", "ruble", "Russian" },
    { "Slovakia", "Bratislava", "Europe", "Slovak", "euro", "Slovak" }, { "Slovenia", "Ljubljana", "Europe", "Slovenian", "euro", "Slovenian" },
    { "Estonia", "Tallinn", "Europe", "Estonian", "euro", "Estonian" }, { "Latvia", "Riga", "Europe", "Latvian", "euro", "Latvian" },
    { "Lithuania", "Vilnius", "Europe", "Lithuanian", "euro", "Lithuanian" }, { "Serbia", "Belgrade", "Europe", "Serbian", "dinar", "Serbian" },
    { "Albania", "Tirana", "Europe", "Albanian", "lek", "Albanian" },
    { "Egypt", "Cairo", "Africa", "Egyptian", "pound", "Arabic" }, { "Morocco", "Rabat", "Africa", "Moroccan", "dirham", "Arabic" },
    { "Algeria", "Algiers", "Africa", "Algerian", "dinar", "Arabic" }, { "Tunisia", "Tunis", "Africa", "Tunisian", "dinar", "Arabic" },
    { "Libya", "Tripoli", "Africa", "Libyan", "dinar", "Arabic" }, { "Kenya", "Nairobi", "Africa", "Kenyan", "shilling", "Swahili" },
    { "Uganda", "Kampala", "Africa", "Ugandan", "shilling", "English" }, { "Ghana", "Accra", "Africa", "Ghanaian", "cedi", "English" },
    { "Nigeria", "Abuja", "Africa", "Nigerian", "naira", "English" }, { "Ethiopia", "Addis Ababa", "Africa", "Ethiopian", "birr", "Amharic" },
    { "Angola", "Luanda", "Africa", "Angolan", "kwanza", "Portuguese" }, { "Zambia", "Lusaka", "Africa", "Zambian", "kwacha", "English" },
    { "Senegal", "Dakar", "Africa", "Senegalese", "franc", "French" }, { "Mozambique", "Maputo", "Africa", "Mozambican", "metical", "Portuguese" },
    { "China", "Beijing", "Asia", "Chinese", "yuan", "Chinese" }, { "Japan", "Tokyo", "Asia", "Japanese", "yen", "Japanese" },
    { "India", "New Delhi", "Asia", "Indian", "rupee", "Hindi" }, { "Pakistan", "Islamabad", "Asia", "Pakistani", "rupee", "Urdu" },
    { "Nepal", "Kathmandu", "Asia", "Nepalese", "rupee", "Nepali" }, { "Thailand", "Bangkok", "Asia", "Thai", "baht", "Thai" },
    { "Vietnam", "Hanoi", "Asia", "Vietnamese", "dong", "Vietnamese" }, { "Indonesia", "Jakarta", "Asia", "Indonesian", "rupiah", "Indonesian" },
    { "Malaysia", "Kuala Lumpur", "Asia", "Malaysian", "ringgit", "Malay" }, { "Mongolia", "Ulaanbaatar", "Asia", "Mongolian", "tugrik", "Mongolian" },
    { "Iran", "Tehran", "Asia", "Iranian", "rial", "Persian" }, { "Iraq", "Baghdad", "Asia", "Iraqi", "dinar", "Arabic" },
    { "Jordan", "Amman", "Asia", "Jordanian", "dinar", "Arabic" }, { "Lebanon", "Beirut", "Asia", "Lebanese", "pound", "Arabic" },
    { "Syria", "Damascus", "Asia", "Syrian", "pound", "Arabic" }, { "Bangladesh", "Dhaka", "Asia", "Bangladeshi", "taka", "Bengali" },
    { "Cambodia", "Phnom Penh", "Asia", "Cambodian", "riel", "Khmer" }, { "Canada", "Ottawa", "North America", "Canadian", "dollar", "English" },
    { "Mexico", "Mexico City", "North America", "Mexican", "peso", "Spanish" }, { "Cuba", "Havana", "North America", "Cuban", "peso", "Spanish" },
    { "Jamaica", "Kingston", "North America", "Jamaican", "dollar", "English" }, { "Honduras", "Tegucigalpa", "North America", "Honduran", "lempira", "Spanish" },
    { "Nicaragua", "Managua", "North America", "Nicaraguan", "cordoba", "Spanish" }, { "Brazil", "Brasilia", "South America", "Brazilian", "real", "Portuguese" },
    { "Argentina", "Buenos Aires", "South America", "Argentine", "peso", "Spanish" }, { "Chile", "Santiago", "South America", "Chilean", "peso", "Spanish" },
    { "Peru", "Lima", "South America", "Peruvian", "sol", "Spanish" }, { "Colombia", "Bogota", "South America", "Colombian", "peso", "Spanish" },
    { "Uruguay", "Montevideo", "South America", "Uruguayan", "peso", "Spanish" }, { "Paraguay", "Asuncion", "South America", "Paraguayan", "guarani", "Spanish" },
    { "Australia", "Canberra", "Oceania", "Australian", "dollar", "English" }, { "New Zealand", "Wellington", "Oceania", "New Zealander", "dollar", "English" },
    { "Fiji", "Suva", "Oceania", "Fijian", "dollar", "English" }
};

/* element, symbol */
static const char *const elements[][2] = {
    { "hydrogen", "H" }, { "helium", "He" }, { "lithium", "Li" }, { "beryllium", "Be" }, { "boron", "B" }, { "carbon", "C" }, { "nitrogen", "N" }, { "oxygen", "O" },
    { "fluorine", "F" }, { "neon", "Ne" }, { "sodium", "Na" }, { "magnesium", "Mg" }, { "aluminium", "Al" }, { "silicon", "Si" }, { "phosphorus", "P" },
    { "sulfur", "S" }, { "chlorine", "Cl" }, { "argon", "Ar" }, { "potassium", "K" }, { "calcium", "Ca" }, { "titanium", "Ti" }, { "vanadium", "V" },
    { "chromium", "Cr" }, { "manganese", "Mn" }, { "iron", "Fe" }, { "cobalt", "Co" }, { "nickel", "Ni" }, { "copper", "Cu" }, { "zinc", "Zn" }, { "gallium", "Ga" },
    { "germanium", "Ge" }, { "arsenic", "As" }, { "selenium", "Se" }, { "bromine", "Br" }, { "krypton", "Kr" }, { "rubidium", "Rb" }, { "strontium", "Sr" },
    { "zirconium", "Zr" }, { "niobium", "Nb" }, { "molybdenum", "Mo" }, { "ruthenium", "Ru" }, { "rhodium", "Rh" }, { "palladium", "Pd" }, { "silver", "Ag" },
    { "cadmium", "Cd" }, { "indium", "In" }, { "tin", "Sn" }, { "antimony", "Sb" }, { "tellurium", "Te" }, { "iodine", "I" }, { "xenon", "Xe" }, { "caesium", "Cs" },
    { "barium", "Ba" }, { "tungsten", "W" }, { "platinum", "Pt" }, { "gold", "Au" }, { "mercury", "Hg" }, { "lead", "Pb" }, { "bismuth", "Bi" }, { "radon", "Rn" },
    { "radium", "Ra" }, { "thorium", "Th" }, { "uranium", "U" }, { "plutonium", "Pu" }
};

/* verb, simple past, past participle, third person */
static const char *const verbs[][4] = {
    { "begin", "began", "begun", "begins" }, { "break", "broke", "broken", "breaks" }, { "bring", "brought", "brought", "brings" }, { "build", "built", "built", "builds" },
    { "buy", "bought", "bought", "buys" }, { "catch", "caught", "caught", "catches" }, { "choose", "chose", "chosen", "chooses" }, { "come", "came", "come", "comes" },
    { "do", "did", "done", "does" }, { "draw", "drew", "drawn", "draws" }, { "drink", "drank", "drunk", "drinks" }, { "drive", "drove", "driven", "drives" },
    { "eat", "ate", "eaten", "eats" }, { "fall", "fell", "fallen", "falls" }, { "feel", "felt", "felt", "feels" }, { "fight", "fought", "fought", "fights" },
    { "find", "found", "found", "finds" }, { "fly", "flew", "flown", "flies" }, { "forget", "forgot", "forgotten", "forgets" }, { "freeze", "froze", "frozen", "freezes" },
    { "give", "gave", "given", "gives" }, { "go", "went", "gone", "goes" }, { "grow", "grew", "grown", "grows" }, { "hide", "hid", "hidden", "hides" },
    { "hold", "held", "held", "holds" }, { "keep", "kept", "kept", "keeps" }, { "know", "knew", "known", "knows" }, { "leave", "left", "left", "leaves" },
    { "lose", "lost", "lost", "loses" }, { "make", "made", "made", "makes" }, { "meet", "met", "met", "meets" }, { "pay", "paid", "paid", "pays" },
    { "ride", "rode", "ridden", "rides" }, { "ring", "rang", "rung", "rings" }, { "run", "ran", "run", "runs" }, { "say", "said", "said", "says" },
    { "see", "saw", "seen", "sees" }, { "sell", "sold", "sold", "sells" }, { "send", "sent", "sent", "sends" }, { "sing", "sang", "sung", "sings" },
    { "sit", "sat", "sat", "sits" }, { "sleep", "slept", "slept", "sleeps" }, { "speak", "spoke", "spoken", "speaks" }, { "spend", "spent", "spent", "spends" },
    { "stand", "stood", "stood", "stands" }, { "steal", "stole", "stolen", "steals" }, { "swim", "swam", "swum", "swims" }, { "take", "took", "taken", "takes" },
    { "teach", "taught", "taught", "teaches" }, { "tell", "told", "told", "tells" }, { "think", "thought", "thought", "thinks" }, { "throw", "threw", "thrown", "throws" },
    { "wake", "woke", "woken", "wakes" }, { "wear", "wore", "worn", "wears" }, { "win", "won", "won", "wins" }, { "write", "wrote", "written", "writes" },
    { "walk", "walked", "walked", "walks" }, { "talk", "talked", "talked", "talks" }, { "play", "played", "played", "plays" }, { "work", "worked", "worked", "works" },
    { "help", "helped", "helped", "helps" }, { "jump", "jumped", "jumped", "jumps" }, { "look", "looked", "looked", "looks" }, { "clean", "cleaned", "cleaned", "cleans" },
    { "open", "opened", "opened", "opens" }, { "start", "started", "started", "starts" }, { "visit", "visited", "visited", "visits" }, { "watch", "watched", "watched", "watches" },
    { "push", "pushed", "pushed", "pushes" }, { "pull", "pulled", "pulled", "pulls" }, { "climb", "climbed", "climbed", "climbs" }, { "laugh", "laughed", "laughed", "laughs" }
};

/* singular, plural */
static const char *const plurals[][2] = {
    { "child", "children" }, { "man", "men" }, { "woman", "women" }, { "tooth", "teeth" }, { "foot", "feet" }, { "goose", "geese" }, { "mouse", "mice" }, { "ox", "oxen" },
    { "knife", "knives" }, { "wife", "wives" }, { "life", "lives" }, { "leaf", "leaves" }, { "half", "halves" }, { "wolf", "wolves" }, { "shelf", "shelves" },
    { "thief", "thieves" }, { "loaf", "loaves" }, { "city", "cities" }, { "baby", "babies" }, { "lady", "ladies" }, { "story", "stories" }, { "party", "parties" },
    { "country", "countries" }, { "family", "families" }, { "box", "boxes" }, { "fox", "foxes" }, { "church", "churches" }, { "dish", "dishes" }, { "bus", "buses" },
    { "glass", "glasses" }, { "potato", "potatoes" }, { "tomato", "tomatoes" }, { "hero", "heroes" }, { "book", "books" }, { "car", "cars" }, { "tree", "trees" },
    { "house", "houses" }, { "dog", "dogs" }, { "cat", "cats" }, { "table", "tables" }, { "chair", "chairs" }, { "river", "rivers" }, { "window", "windows" },
    { "garden", "gardens" }, { "teacher", "teachers" }, { "brush", "brushes" }, { "match", "matches" }, { "watch", "watches" }, { "puppy", "puppies" }, { "berry", "berries" },
    { "key", "keys" }, { "boy", "boys" }, { "toy", "toys" }, { "day", "days" }, { "calf", "calves" }, { "scarf", "scarves" }, { "kiss", "kisses" }, { "bench", "benches" },
    { "penny", "pennies" }, { "army", "armies" }, { "student", "students" }, { "sister", "sisters" }
};

/* word, opposite */
static const char *const opposites[][2] = {
    { "hot", "cold" }, { "big", "small" }, { "tall", "short" }, { "fast", "slow" }, { "old", "new" }, { "happy", "sad" }, { "good", "bad" }, { "rich", "poor" },
    { "strong", "weak" }, { "light", "dark" }, { "full", "empty" }, { "open", "closed" }, { "early", "late" }, { "easy", "difficult" }, { "clean", "dirty" }, { "dry", "wet" },
    { "hard", "soft" }, { "high", "low" }, { "wide", "narrow" }, { "thick", "thin" }, { "loud", "quiet" }, { "sharp", "blunt" }, { "true", "false" }, { "right", "wrong" },
    { "inside", "outside" }, { "above", "below" }, { "before", "after" }, { "first", "last" }, { "always", "never" }, { "more", "less" }, { "up", "down" }, { "near", "far" },
    { "war", "peace" }, { "day", "night" }, { "summer", "winter" }, { "friend", "enemy" }, { "love", "hate" }, { "win", "lose" }, { "buy", "sell" }, { "push", "pull" },
    { "arrive", "depart" }, { "laugh", "cry" }, { "begin", "end" }, { "give", "take" }, { "remember", "forget" }, { "brave", "cowardly" }, { "polite", "rude" },
    { "cheap", "expensive" }, { "ancient", "modern" }, { "deep", "shallow" }, { "smooth", "rough" }, { "heavy", "weightless" }, { "guilty", "innocent" }, { "north", "south" },
    { "east", "west" }, { "birth", "death" }, { "success", "failure" }, { "question", "answer" }
};

/* animal, its young */
static const char *const young[][2] = {
    { "dog", "puppy" }, { "cat", "kitten" }, { "cow", "calf" }, { "horse", "foal" }, { "sheep", "lamb" }, { "pig", "piglet" }, { "goat", "kid" }, { "lion", "cub" },
    { "bear", "cub" }, { "wolf", "pup" }, { "duck", "duckling" }, { "goose", "gosling" }, { "hen", "chick" }, { "swan", "cygnet" }, { "frog", "tadpole" }, { "deer", "fawn" },
    { "kangaroo", "joey" }, { "rabbit", "kit" }, { "eagle", "eaglet" }, { "owl", "owlet" }, { "seal", "pup" }, { "tiger", "cub" }, { "fox", "cub" }, { "elephant", "calf" },
    { "whale", "calf" }, { "giraffe", "calf" }, { "donkey", "foal" }, { "zebra", "foal" }, { "dolphin", "calf" }, { "koala", "joey" }, { "shark", "pup" }, { "otter", "pup" },
    { "camel", "calf" }, { "butterfly", "caterpillar" }, { "hare", "leveret" }, { "eel", "elver" }, { "turkey", "poult" }, { "hippopotamus", "calf" }, { "buffalo", "calf" },
    { "squirrel", "kit" }, { "leopard", "cub" }, { "beaver", "kit" }
};

/* English, Spanish, French, German */
static const char *const translations[][4] = {
    { "house", "casa", "maison", "Haus" }, { "dog", "perro", "chien", "Hund" }, { "cat", "gato", "chat", "Katze" }, { "water", "agua", "eau", "Wasser" },
    { "bread", "pan", "pain", "Brot" }, { "milk", "leche", "lait", "Milch" }, { "book", "libro", "livre", "Buch" }, { "tree", "\303\241rbol", "arbre", "Baum" },
    { "sun", "sol", "soleil", "Sonne" }, { "moon", "luna", "lune", "Mond" }, { "night", "noche", "nuit", "Nacht" }, { "day", "d\303\255a", "jour", "Tag" },
    { "year", "a\303\261o", "ann\303\251e", "Jahr" }, { "friend", "amigo", "ami", "Freund" }, { "woman", "mujer", "femme", "Frau" }, { "man", "hombre", "homme", "Mann" },
    { "child", "ni\303\261o", "enfant", "Kind" }, { "father", "padre", "p\303\250re", "Vater" }, { "mother", "madre", "m\303\250re", "Mutter" }, { "brother", "hermano", "fr\303\250re", "Bruder" },
    { "sister", "hermana", "s\305\223ur", "Schwester" }, { "hand", "mano", "main", "Hand" }, { "head", "cabeza", "t\303\252te", "Kopf" }, { "eye", "ojo", "\305\223il", "Auge" },
    { "heart", "coraz\303\263n", "c\305\223ur", "Herz" }, { "city", "ciudad", "ville", "Stadt" }, { "street", "calle", "rue", "Stra\303\237e" }, { "school", "escuela", "\303\251cole", "Schule" },
    { "door", "puerta", "porte", "T\303\274r" }, { "window", "ventana", "fen\303\252tre", "Fenster" }, { "table", "mesa", "table", "Tisch" }, { "chair", "silla", "chaise", "Stuhl" },
    { "apple", "manzana", "pomme", "Apfel" }, { "horse", "caballo", "cheval", "Pferd" }, { "bird", "p\303\241jaro", "oiseau", "Vogel" }, { "fish", "pez", "poisson", "Fisch" },
    { "flower", "flor", "fleur", "Blume" }, { "sea", "mar", "mer", "Meer" }, { "river", "r\303\255o", "rivi\303\250re", "Fluss" }, { "mountain", "monta\303\261a", "montagne", "Berg" },
    { "fire", "fuego", "feu", "Feuer" }, { "snow", "nieve", "neige", "Schnee" }, { "rain", "lluvia", "pluie", "Regen" }, { "wind", "viento", "vent", "Wind" },
    { "red", "rojo", "rouge", "rot" }, { "green", "verde", "vert", "gr\303\274n" }, { "blue", "azul", "bleu", "blau" }, { "white", "blanco", "blanc", "wei\303\237" },
    { "black", "negro", "noir", "schwarz" }, { "big", "grande", "grand", "gro\303\237" }, { "small", "peque\303\261o", "petit", "klein" }, { "new", "nuevo", "nouveau", "neu" },
    { "old", "viejo", "vieux", "alt" }, { "good", "bueno", "bon", "gut" }, { "bad", "malo", "mauvais", "schlecht" }, { "one", "uno", "un", "eins" }, { "two", "dos", "deux", "zwei" },
    { "three", "tres", "trois", "drei" }, { "four", "cuatro", "quatre", "vier" }, { "five", "cinco", "cinq", "f\303\274nf" }
};

static const char *const number_words[] = { "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen",
    "fifteen", "sixteen", "seventeen", "eighteen", "nineteen" };
static const char *const tens_words[] = { "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety" };

static const char *const good_adjectives[] = { "wonderful", "excellent", "delicious", "beautiful", "charming", "brilliant", "lovely", "superb", "fantastic", "delightful", "perfect", "amazing" };
static const char *const bad_adjectives[] = { "terrible", "awful", "boring", "horrible", "disgusting", "ugly", "dreadful", "disappointing", "poor", "nasty", "useless", "miserable" };
static const char *const reviewed[] = { "film", "meal", "hotel", "concert", "book", "service", "room", "story", "game", "song", "lesson", "trip", "play", "dinner", "speech", "view" };
