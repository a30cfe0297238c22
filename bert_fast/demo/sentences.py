"""Sentences for the demo, on subjects far enough apart that a good model finds the right neighbours."""

SENTENCES = (
    # cooking
    "Knead the dough for ten minutes, then let it rise under a damp cloth.",
    "A pinch of salt brings out the sweetness of ripe tomatoes.",
    "Simmer the lentils with garlic and cumin until they are soft.",
    "She whisked the egg whites until they stood in stiff peaks.",
    "Sharpen your kitchen knives before you start cutting vegetables.",
    # space
    "The probe sent back the first close pictures of the icy moon.",
    "Two astronauts spent six hours outside the station to replace a battery.",
    "Light from that galaxy left it long before the Sun was formed.",
    "The rover's wheels were worn down by three years of sharp Martian rock.",
    "A solar eclipse will cross the north of the country this spring.",
    # medicine
    "The new vaccine protects nine out of ten people who receive it.",
    "High blood pressure often goes unnoticed for many years.",
    "Surgeons removed the tumour through an opening smaller than a coin.",
    "Patients who walk every day recover faster after a heart operation.",
    "The doctor prescribed antibiotics for the infection in his lung.",
    # programming
    "The function returns early when the list it is given is empty.",
    "A race condition made the test fail about once in a hundred runs.",
    "We moved the database to a bigger server and the queries became slower.",
    "Type annotations let the editor find mistakes before the program runs.",
    "The memory leak came from a cache that never forgot anything.",
    # sport
    "The home team scored twice in the last five minutes and won the match.",
    "She ran the marathon in under three hours despite the rain.",
    "The goalkeeper saved a penalty with his left foot.",
    "After four sets the champion lost her serve and then the final.",
    "Young swimmers train before school, at six in the morning.",
    # money
    "The central bank raised interest rates to slow down inflation.",
    "Shares of the airline fell after it warned of smaller profits.",
    "Many families spend more than a third of their income on rent.",
    "The startup ran out of cash before it had a single customer.",
    "He puts part of his salary into a pension fund every month.",
    # nature
    "Swallows return to the same barn every spring to build their nests.",
    "The river flooded the valley after three days of heavy rain.",
    "Old oak trees give shelter to hundreds of kinds of insects.",
    "A pack of wolves was seen near the village for the first time in decades.",
    "Coral reefs turn white when the sea stays warm for too long.",
    # music and travel
    "The orchestra tuned its instruments while the hall was filling up.",
    "He learned to play the cello at the age of fifty.",
    "Our train was two hours late, so we missed the last ferry to the island.",
    "The old town is best explored on foot, early in the morning.",
    "She packed nothing but a small bag and a map of the mountains.",
)

QUERIES = (
    "How do I bake bread at home?",
    "a bug in the software",
    "exploring other planets",
    "prices are going up",
    "trouble with the heart",
)
