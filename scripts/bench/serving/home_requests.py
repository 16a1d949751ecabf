"""Requests in people's words for the page's example "Home (flat style)": none follows the tools' templates."""

ALARM, MUSIC, LIGHT = "set_alarm", "play_music", "switch_light"


def alarm(time):
    return {"name": ALARM, "arguments": {"time": time}}


def music(**what):
    return {"name": MUSIC, "arguments": what}


def light(room, state):
    return {"name": LIGHT, "arguments": {"room": room, "state": state}}


# Added by hand to the rows of a finetuning.
ADDED = [
    ("i need to be up by 5:45 am tomorrow", [alarm("5:45 am")]),
    ("please ring at 9 pm", [alarm("9 pm")]),
    ("get me out of bed at 06:30", [alarm("06:30")]),
    ("new alarm, 11:15 please", [alarm("11:15")]),
    ("could you wake me at 8 o'clock", [alarm("8 o'clock")]),
    ("i want to hear Yesterday", [music(song="Yesterday")]),
    ("let me listen to Nina Simone", [music(artist="Nina Simone")]),
    ("start Blue Train by John Coltrane", [music(song="Blue Train", artist="John Coltrane")]),
    ("some Miles Davis, please", [music(artist="Miles Davis")]),
    ("can we have Imagine by John Lennon", [music(song="Imagine", artist="John Lennon")]),
    ("lights out in the cellar", [light("cellar", "off")]),
    ("it is too dark in the kitchen, put the light on", [light("kitchen", "on")]),
    ("no more light in the garage", [light("garage", "off")]),
    ("kill the lights in the attic", [light("attic", "off")]),
    ("make it bright in the study, lights on", [light("study", "on")]),
    ("what is the capital of France", []),
    ("tell me a joke", []),
    ("thanks, that is all", []),
    ("wake me at 7 and turn the hall light on", [alarm("7"), light("hall", "on")]),
    ("play Hallelujah and turn off the light in the bedroom", [music(song="Hallelujah"), light("bedroom", "off")]),
]

# Never trained on.
ASKED = [
    ("i have to get up at 6:15", [alarm("6:15")]),
    ("make sure i am awake by 7:30 am", [alarm("7:30 am")]),
    ("ring the bell at 4 pm", [alarm("4 pm")]),
    ("can you set one for 10:20", [alarm("10:20")]),
    ("please wake me tomorrow at 5", [alarm("5")]),
    ("an alarm at noon would be good", [alarm("noon")]),
    ("don't let me sleep past 9:45", [alarm("9:45")]),
    ("remind me to get up at 06:50", [alarm("06:50")]),
    ("i'd like to be woken at 8:05 am", [alarm("8:05 am")]),
    ("alarm for quarter past six please", [alarm("quarter past six")]),
    ("i feel like hearing Bohemian Rhapsody", [music(song="Bohemian Rhapsody")]),
    ("could you put on Let It Be by The Beatles", [music(song="Let It Be", artist="The Beatles")]),
    ("anything by Aretha Franklin", [music(artist="Aretha Franklin")]),
    ("let's listen to Take Five", [music(song="Take Five")]),
    ("i love Johnny Cash, play him", [music(artist="Johnny Cash")]),
    ("play me the song Africa", [music(song="Africa")]),
    ("give us Hurt by Johnny Cash", [music(song="Hurt", artist="Johnny Cash")]),
    ("would you start Clair de Lune", [music(song="Clair de Lune")]),
    ("music by Ella Fitzgerald please", [music(artist="Ella Fitzgerald")]),
    ("turn up Smooth Operator by Sade", [music(song="Smooth Operator", artist="Sade")]),
    ("lights on in the bathroom", [light("bathroom", "on")]),
    ("please put out the light in the hallway", [light("hallway", "off")]),
    ("i can't see a thing in the basement, lights on", [light("basement", "on")]),
    ("the kitchen light can go off", [light("kitchen", "off")]),
    ("make the living room dark, lights off", [light("living room", "off")]),
    ("light on in the office", [light("office", "on")]),
    ("could you switch off everything in the garage", [light("garage", "off")]),
    ("bedroom lights off please", [light("bedroom", "off")]),
    ("get the porch light on", [light("porch", "on")]),
    ("we need light in the dining room, turn it on", [light("dining room", "on")]),
    ("how tall is the Eiffel Tower", []),
    ("good morning", []),
    ("what should i cook tonight", []),
    ("who wrote Hamlet", []),
    ("never mind", []),
    ("i am tired", []),
    ("wake me at 6 and play Here Comes the Sun", [alarm("6"), music(song="Here Comes the Sun")]),
    ("turn off the kitchen light and set an alarm for 7:10", [light("kitchen", "off"), alarm("7:10")]),
    ("lights off in the study and lights on in the hall", [light("study", "off"), light("hall", "on")]),
    ("play Adele and wake me at 8 am", [music(artist="Adele"), alarm("8 am")]),
]
