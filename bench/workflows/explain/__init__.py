"""Why two cells disagree, by experiment.

naming finds a cell by name; sides is what can be changed of a cell; hypotheses lists the changes of
one side towards the other; trial runs both sides and sees what they do; search tries the changes
one at a time and stops at the first that closes the gap; explanations keeps the answer.
"""
