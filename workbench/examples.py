"""Everyday prompts and conversations to start from. They were written down before any draft was trained."""

EXAMPLE_PROMPTS: dict[str, str] = {
    "Arithmetic": "A baker sells 12 loaves a day at 4 dollars each. Flour costs 18 dollars a day. "
    "How much does she earn in a week?",
    "Python": "Write a Python function that returns the n-th Fibonacci number, with a short explanation.",
    "Letter": "Write a polite email to my landlord: the heating in the living room has been broken for three days.",
    "Explain": "Why is the sky blue? Explain it to a curious child.",
    "Plan": "Suggest a simple plan for a weekend in the mountains with two children.",
}

EXAMPLE_CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "Two questions about trains": [
        {"role": "system", "content": "You answer briefly and show your working."},
        {"role": "user", "content": "A train leaves at 9:40 and arrives at 12:05. How long is the trip?"},
        {
            "role": "assistant",
            "content": "From 9:40 to 12:00 are 2 hours and 20 minutes, and 5 more minutes follow. "
            "The trip takes 2 hours and 25 minutes.",
        },
        {"role": "user", "content": "And if it is 15 minutes late?"},
        {
            "role": "assistant",
            "content": "Then it arrives at 12:20, so the trip takes 2 hours and 25 minutes plus 15 minutes: "
            "2 hours and 40 minutes.",
        },
    ],
    "A function and its test": [
        {"role": "user", "content": "Write a Python function that counts the vowels in a string, and test it."},
        {
            "role": "assistant",
            "content": "Here is a function that walks over the string once:\n\n"
            "```python\ndef count_vowels(text):\n    return sum(1 for letter in text.lower() if letter in \"aeiou\")\n"
            "```\n\nA short test covers upper case, no vowels and the empty string:\n\n"
            "```python\nassert count_vowels(\"Apple\") == 2\nassert count_vowels(\"rhythm\") == 0\n"
            "assert count_vowels(\"\") == 0\n```\n\nEach assertion passes silently; a failing one raises AssertionError.",
        },
    ],
    "Soup for six": [
        {"role": "system", "content": "You are a patient cook."},
        {"role": "user", "content": "How do I make lentil soup for six people?"},
        {
            "role": "assistant",
            "content": "You need 400 g of red lentils, two onions, three carrots, two cloves of garlic, a tin of "
            "tomatoes, one and a half litres of vegetable stock, cumin, lemon and olive oil.\n\n"
            "1. Chop the onions and carrots and let them soften in olive oil for ten minutes.\n"
            "2. Add the garlic and two teaspoons of cumin and stir for a minute.\n"
            "3. Rinse the lentils and add them with the tomatoes and the stock.\n"
            "4. Simmer for twenty-five minutes, stirring now and then, until the lentils fall apart.\n"
            "5. Season with salt and the juice of half a lemon.",
        },
        {"role": "user", "content": "My stock is very salty. What should I change?"},
        {
            "role": "assistant",
            "content": "Use half stock and half water, and leave out the salt in the last step. Taste before you add the "
            "lemon: acid makes salt stand out more. If it is still too salty, a peeled potato simmered in the soup and "
            "taken out again dilutes it a little, and a spoon of yoghurt in each bowl softens what is left.",
        },
        {"role": "user", "content": "Can I freeze it?"},
        {
            "role": "assistant",
            "content": "Yes. Let it cool, fill it into boxes with two fingers of room at the top, and freeze it for up to "
            "three months. It thickens as it stands, so add a splash of water when you warm it up.",
        },
    ],
}
