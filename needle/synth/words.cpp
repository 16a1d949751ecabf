#include "needle/synth/words.h"

namespace needle::words {
namespace {

constexpr std::string_view kWeekdaysWords[] = {"Monday", "Tuesday",  "Wednesday", "Thursday",
                                               "Friday", "Saturday", "Sunday"};

constexpr std::string_view kMonthsWords[] = {"January",   "February", "March",    "April",
                                             "May",       "June",     "July",     "August",
                                             "September", "October",  "November", "December"};

constexpr std::string_view kFirstNamesWords[] = {
    "Anna",   "Ben",     "Clara",  "David",  "Emma",   "Felix",    "Grace",  "Hannah",  "Ivan",
    "Julia",  "Karim",   "Laura",  "Marco",  "Nina",   "Oscar",    "Paula",  "Quentin", "Rosa",
    "Samuel", "Tina",    "Umar",   "Vera",   "Walter", "Xenia",    "Yusuf",  "Zoe",     "Amir",
    "Bianca", "Carlos",  "Diana",  "Elias",  "Fatima", "George",   "Helena", "Isaac",   "Jasmin",
    "Kevin",  "Leila",   "Martin", "Nadia",  "Oliver", "Priya",    "Rafael", "Sofia",   "Thomas",
    "Ursula", "Victor",  "Wendy",  "Yara",   "Adrian", "Beatrice", "Caleb",  "Daphne",  "Edgar",
    "Fiona",  "Gustav",  "Holly",  "Igor",   "Joanna", "Kofi",     "Linda",  "Mateo",   "Noah",
    "Olga",   "Pedro",   "Ruth",   "Stefan", "Tara",   "Vincent",  "Willow", "Aisha",   "Bruno",
    "Chen",   "Dorothy", "Erik",   "Freya",  "Gavin",  "Hugo",     "Irene",  "Jonas",   "Kira",
    "Lucas",  "Mira",    "Nils",   "Otto",   "Petra",  "Ravi",     "Simone", "Teodor",  "Vlad",
    "Wilma"};

constexpr std::string_view kLastNamesWords[] = {
    "Anderson", "Baker",   "Costa",     "Dupont", "Eriksen",   "Fischer", "Garcia",   "Hansen",
    "Ivanov",   "Jensen",  "Kowalski",  "Lopez",  "Meyer",     "Novak",   "Okafor",   "Patel",
    "Quinn",    "Rossi",   "Schmidt",   "Tanaka", "Ueda",      "Vargas",  "Weber",    "Young",
    "Zhang",    "Almeida", "Bergman",   "Carter", "Dimitrov",  "Evans",   "Flores",   "Grant",
    "Huber",    "Ito",     "Johansson", "Khan",   "Lindqvist", "Moreau",  "Nakamura", "Olsen"};

constexpr std::string_view kCitiesWords[] = {
    "Paris",      "London",     "Berlin",   "Madrid",      "Rome",      "Lisbon",
    "Vienna",     "Prague",     "Warsaw",   "Oslo",        "Helsinki",  "Dublin",
    "Athens",     "Budapest",   "Zurich",   "Geneva",      "Munich",    "Hamburg",
    "Cologne",    "Lyon",       "Nice",     "Porto",       "Seville",   "Valencia",
    "Milan",      "Naples",     "Turin",    "Venice",      "Brussels",  "Antwerp",
    "Rotterdam",  "Utrecht",    "Bergen",   "Malmo",       "Aarhus",    "Tallinn",
    "Riga",       "Vilnius",    "Krakow",   "Gdansk",      "Sofia",     "Bucharest",
    "Belgrade",   "Zagreb",     "Split",    "Istanbul",    "Ankara",    "Cairo",
    "Tunis",      "Casablanca", "Nairobi",  "Lagos",       "Accra",     "Dakar",
    "Cape Town",  "Durban",     "Mumbai",   "Delhi",       "Chennai",   "Kolkata",
    "Dhaka",      "Karachi",    "Lahore",   "Tehran",      "Baghdad",   "Doha",
    "Dubai",      "Muscat",     "Tokyo",    "Osaka",       "Kyoto",     "Nagoya",
    "Seoul",      "Busan",      "Beijing",  "Shanghai",    "Taipei",    "Hanoi",
    "Bangkok",    "Manila",     "Jakarta",  "Singapore",   "Sydney",    "Melbourne",
    "Perth",      "Brisbane",   "Auckland", "Wellington",  "Toronto",   "Montreal",
    "Vancouver",  "Calgary",    "Ottawa",   "Boston",      "New York",  "Chicago",
    "Denver",     "Seattle",    "Portland", "Austin",      "Dallas",    "Houston",
    "Phoenix",    "Miami",      "Atlanta",  "Memphis",     "Nashville", "Detroit",
    "Cleveland",  "San Diego",  "San Jose", "Los Angeles", "Las Vegas", "Mexico City",
    "Havana",     "Lima",       "Bogota",   "Quito",       "Santiago",  "Buenos Aires",
    "Montevideo", "Sao Paulo",  "Recife",   "Salvador"};

constexpr std::string_view kRoomsWords[] = {
    "kitchen",  "living room", "bedroom",     "bathroom", "garage",     "hallway",  "office",
    "basement", "attic",       "dining room", "nursery",  "guest room", "study",    "laundry room",
    "balcony",  "garden",      "porch",       "library",  "playroom",   "workshop", "cellar",
    "entrance", "terrace",     "pantry",      "gym"};

constexpr std::string_view kColorsWords[] = {
    "red",    "green",     "blue",   "yellow",   "orange",     "purple", "pink",
    "white",  "turquoise", "violet", "amber",    "crimson",    "teal",   "gold",
    "silver", "magenta",   "cyan",   "lavender", "warm white", "indigo"};

constexpr std::string_view kDevicesWords[] = {
    "lamp",           "ceiling light",   "fan",
    "heater",         "television",      "radio",
    "coffee machine", "dishwasher",      "washing machine",
    "oven",           "air conditioner", "humidifier",
    "vacuum",         "printer",         "router",
    "speaker",        "desk lamp",       "night light",
    "kettle",         "toaster",         "projector",
    "thermostat",     "sprinkler",       "garage door",
    "blinds"};

constexpr std::string_view kFoodsWords[] = {
    "pizza",   "pasta",   "sushi",    "curry",   "salad",     "soup",      "tacos", "burger",
    "noodles", "risotto", "pancakes", "lasagna", "dumplings", "sandwich",  "steak", "omelette",
    "stew",    "falafel", "ramen",    "paella",  "goulash",   "chowder",   "kebab", "quiche",
    "muffins", "waffles", "gnocchi",  "chili",   "bread",     "cheesecake"};

constexpr std::string_view kFoodAdjectivesWords[] = {
    "spicy",  "fresh",    "vegan", "grilled", "roasted", "sweet",       "creamy", "crispy",
    "smoked", "homemade", "cold",  "hot",     "light",   "gluten free", "baked",  "fried"};

constexpr std::string_view kProductsWords[] = {
    "headphones", "shoes",      "backpack", "jacket", "keyboard",  "monitor",
    "notebook",   "bottle",     "chair",    "desk",   "camera",    "watch",
    "umbrella",   "blanket",    "pillow",   "candle", "bicycle",   "helmet",
    "gloves",     "scarf",      "mug",      "tent",   "lantern",   "suitcase",
    "wallet",     "sunglasses", "charger",  "mouse",  "bookshelf", "mirror"};

constexpr std::string_view kLanguagesWords[] = {
    "English",    "French",  "German",  "Spanish",   "Italian",  "Portuguese", "Dutch",   "Swedish",
    "Norwegian",  "Danish",  "Finnish", "Polish",    "Czech",    "Greek",      "Turkish", "Arabic",
    "Hebrew",     "Hindi",   "Bengali", "Urdu",      "Japanese", "Korean",     "Chinese", "Thai",
    "Vietnamese", "Swahili", "Russian", "Ukrainian", "Romanian", "Hungarian"};

constexpr std::string_view kCurrenciesWords[] = {
    "dollars", "euros", "pounds", "yen",    "francs",    "rupees", "pesos", "kroner",
    "zloty",   "won",   "lira",   "dinars", "shillings", "rand",   "baht"};

constexpr std::string_view kAdjectivesWords[] = {
    "silver",   "golden",   "quiet",    "broken",  "distant", "gentle",    "hidden",  "lonely",
    "bright",   "frozen",   "ancient",  "bitter",  "crimson", "endless",   "fading",  "hollow",
    "jagged",   "little",   "midnight", "narrow",  "orange",  "painted",   "quick",   "restless",
    "secret",   "tender",   "upper",    "velvet",  "wild",    "young",     "brave",   "calm",
    "dusty",    "electric", "foggy",    "grand",   "heavy",   "icy",       "jolly",   "kind",
    "lazy",     "misty",    "noble",    "old",     "pale",    "rare",      "sharp",   "tall",
    "urban",    "vivid",    "warm",     "yellow",  "blue",    "clever",    "dark",    "early",
    "faithful", "giant",    "humble",   "inner",   "joyful",  "keen",      "lost",    "modern",
    "northern", "open",     "proud",    "royal",   "silent",  "tiny",      "unknown", "vast",
    "windy",    "autumn",   "burning",  "crooked", "dancing", "falling",   "flying",  "growing",
    "running",  "shining",  "sleeping", "turning", "waiting", "wandering", "western", "wooden",
    "summer",   "winter"};

constexpr std::string_view kNounsWords[] = {
    "river",   "mountain", "garden",  "window",   "letter",  "engine",  "forest",   "candle",
    "mirror",  "bridge",   "station", "harbor",   "island",  "desert",  "meadow",   "valley",
    "ocean",   "thunder",  "shadow",  "lantern",  "compass", "feather", "hammer",   "ladder",
    "needle",  "orchard",  "pepper",  "quarry",   "ribbon",  "saddle",  "temple",   "umbrella",
    "violin",  "whistle",  "anchor",  "basket",   "castle",  "diamond", "eagle",    "falcon",
    "glacier", "hunter",   "insect",  "jungle",   "kingdom", "lemon",   "magnet",   "novel",
    "onion",   "palace",   "quilt",   "rocket",   "sailor",  "tiger",   "uncle",    "village",
    "wagon",   "yard",     "zebra",   "apple",    "butter",  "cotton",  "dragon",   "emerald",
    "flower",  "guitar",   "horizon", "iron",     "jacket",  "kettle",  "lagoon",   "mango",
    "nickel",  "olive",    "pencil",  "queen",    "rabbit",  "spider",  "tunnel",   "vapor",
    "willow",  "acorn",    "beacon",  "canyon",   "dolphin", "ember",   "fountain", "gravel",
    "hollow",  "ivory",    "jewel",   "kitten",   "lizard",  "marble",  "nectar",   "otter",
    "parrot",  "raven",    "salmon",  "timber",   "velvet",  "walnut",  "yogurt",   "zephyr",
    "report",  "meeting",  "project", "budget",   "invoice", "ticket",  "contract", "picnic",
    "concert", "lecture",  "seminar", "workshop", "recipe",  "package", "parcel",   "brochure",
    "survey",  "schedule", "agenda",  "summary",  "proposal"};

constexpr std::string_view kSmallTalkWords[] = {"what is the meaning of life",
                                                "tell me something interesting",
                                                "do you like music",
                                                "how tall is the tallest building",
                                                "who wrote that famous play",
                                                "why is the sky blue",
                                                "i feel a bit tired",
                                                "that was a lovely evening",
                                                "what do you think about cats",
                                                "how do magnets work",
                                                "good morning",
                                                "thank you very much",
                                                "are you a robot",
                                                "how old are you",
                                                "what is your favorite color",
                                                "is it hard to learn chess",
                                                "my brother plays the drums",
                                                "how many legs does a spider have",
                                                "can fish sleep",
                                                "i had a strange dream",
                                                "what came first the chicken or the egg",
                                                "who invented the telephone",
                                                "it is a beautiful day",
                                                "never mind",
                                                "i am just thinking out loud",
                                                "how far away is the moon",
                                                "what is a prime number",
                                                "do plants feel pain",
                                                "i miss my grandmother",
                                                "history is fascinating",
                                                "you are very helpful",
                                                "how is glass made",
                                                "why do cats purr",
                                                "what does serendipity mean",
                                                "the soup was too salty",
                                                "i lost my keys again",
                                                "how do airplanes fly",
                                                "i cannot decide",
                                                "why is the ocean salty",
                                                "what is gravity"};

}  // namespace

const std::span<const std::string_view> kWeekdays = kWeekdaysWords;
const std::span<const std::string_view> kMonths = kMonthsWords;
const std::span<const std::string_view> kFirstNames = kFirstNamesWords;
const std::span<const std::string_view> kLastNames = kLastNamesWords;
const std::span<const std::string_view> kCities = kCitiesWords;
const std::span<const std::string_view> kRooms = kRoomsWords;
const std::span<const std::string_view> kColors = kColorsWords;
const std::span<const std::string_view> kDevices = kDevicesWords;
const std::span<const std::string_view> kFoods = kFoodsWords;
const std::span<const std::string_view> kFoodAdjectives = kFoodAdjectivesWords;
const std::span<const std::string_view> kProducts = kProductsWords;
const std::span<const std::string_view> kLanguages = kLanguagesWords;
const std::span<const std::string_view> kCurrencies = kCurrenciesWords;
const std::span<const std::string_view> kAdjectives = kAdjectivesWords;
const std::span<const std::string_view> kNouns = kNounsWords;
const std::span<const std::string_view> kSmallTalk = kSmallTalkWords;

}  // namespace needle::words
