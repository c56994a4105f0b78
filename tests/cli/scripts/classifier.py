import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split

df = pd.read_csv("customers.csv", parse_dates=["asked_at"])
df = df.drop(columns=["customer", "asked_at"])
df["charge_per_call"] = df["charge"] / (1 + df["calls"])
df["log_tenure"] = np.log1p(df["tenure"])
df["is_new"] = (df["tenure"] < 6).astype(int)
df["charge_rank"] = df["charge"].rank(pct=True)
y = df.pop("churned")
X = pd.get_dummies(df)

X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=7, stratify=y)

model = RandomForestClassifier(n_estimators=60, max_depth=6, min_samples_leaf=5, random_state=7)
model.fit(X_train, y_train)

probability = model.predict_proba(X_test)[:, 1]
print("auc", roc_auc_score(y_test, probability))
print("accuracy", accuracy_score(y_test, probability > 0.5))
plt.hist(probability)
plt.savefig("hist.png")
