"""Trains the churn model."""

import argparse
import logging
import pickle

import pandas as pd
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split

log = logging.getLogger(__name__)


def load(path):
    df = pd.read_csv(path)
    return df.drop(["churned", "customer", "asked_at", "plan"], axis=1), df["churned"]


def fill(frame):
    return frame.fillna(0)


def train(X, y, trees):
    model = VotingClassifier(
        [
            ("forest", RandomForestClassifier(n_estimators=trees, random_state=3)),
            ("line", LogisticRegression(max_iter=300)),
        ],
        voting="soft",
    )
    return model.fit(X, y)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="customers.csv")
    parser.add_argument("--trees", type=int, default=30)
    args = parser.parse_args()
    X, y = load(args.data)
    X = fill(X)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, shuffle=False)
    model = train(X_train, y_train, args.trees)
    log.info("balanced accuracy %s", balanced_accuracy_score(y_test, model.predict(X_test)))
    with open("model.pkl", "wb") as f:
        pickle.dump(model, f)


if __name__ == "__main__":
    main()
